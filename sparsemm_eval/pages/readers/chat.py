"""Chat format of a reader: the pieces of a conversation and the Jinja template made of them."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

_TEMPLATE = Template(
    "{%- macro content(items) %}"
    "{%- if items is string %}{{- items }}{%- else %}"
    "{%- for item in items if item['type'] == 'image' %}{{- $image }}{%- endfor %}"
    "{%- for item in items if item['type'] == 'text' %}{{- item['text'] }}{%- endfor %}"
    "{%- endif %}{%- endmacro %}"
    "{%- if messages[0]['role'] != 'system' %}{{- $default_system }}{%- endif %}"
    "{%- for message in messages %}{%- if false %}"
    "{%- elif message['role'] == 'system' %}{{- $system }}{{- content(message['content']) }}{{- $close }}"
    "{%- elif message['role'] == 'user' %}{{- $user }}{{- content(message['content']) }}{{- $close }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- $assistant }}{{- content(message['content']) }}{{- $close_answer }}"
    "{%- else %}{{- raise_exception('unknown role ' + message['role']) }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- $assistant }}{%- endif %}"
)


@dataclass(frozen=True)
class ChatFormat:
    """Fixed strings around the turns of a conversation.

    Attributes
    ----------
    opening : str
        What opens a turn, with ``{role}`` for system, user or assistant.
    close : str
        What ends a turn of the system or the user.
    close_answer : str
        What ends a turn of the assistant; starts with the end-of-sequence token.
    image : str
        Placeholder of one image.
    default_system : str
        Put first when a conversation brings no system message.
    """

    opening: str
    close: str
    close_answer: str
    image: str
    default_system: str = ""

    def start(self) -> str:
        """What comes before the first user turn's content in a conversation without system message."""
        return self.default_system + self.opening.format(role="user")

    def ask(self) -> str:
        """What stands between a question and its answer."""
        return self.close + self.opening.format(role="assistant")

    def next_turn(self) -> str:
        """What stands between an answer and the next question."""
        return self.close_answer + self.opening.format(role="user")

    def template(self) -> str:
        """Jinja chat template; message contents are strings, or lists whose images come before the texts."""
        pieces = {role: self.opening.format(role=role) for role in ("system", "user", "assistant")}
        return _TEMPLATE.substitute({name: _quoted(text) for name, text in (vars(self) | pieces).items()})


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
