"""Chat format of a reader family: the pieces of a conversation and the Jinja template made of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """Fixed strings around the turns of a conversation.

    Attributes
    ----------
    default_system : str
        Put first when a conversation brings no system message; may be empty.
    system, user, assistant : str
        What opens a turn of that role.
    close_system, close_user, close_assistant : str
        What ends the turn; `close_assistant` starts with the end-of-sequence token.
    image : str
        Placeholder of one image.
    """

    default_system: str
    system: str
    close_system: str
    user: str
    close_user: str
    assistant: str
    close_assistant: str
    image: str

    def start(self):
        """What comes before the first user turn's content in a conversation without system message."""
        return self.default_system + self.user

    def ask(self):
        """What stands between a question and its answer."""
        return self.close_user + self.assistant

    def next_turn(self):
        """What stands between an answer and the next question."""
        return self.close_assistant + self.user

    def template(self):
        """Jinja chat template; message contents are strings or lists of image and text items.

        Images of a list are put before its texts, whatever their order.
        """

        def quote(text):
            return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

        def turn(role, opening, closing):
            return (
                f"{{%- elif message['role'] == '{role}' %}}{{{{- {quote(opening)} }}}}"
                f"{{{{- content(message['content']) }}}}{{{{- {quote(closing)} }}}}"
            )

        image = f"{{{{- {quote(self.image)} }}}}"
        return (
            "{%- macro content(items) %}"
            "{%- if items is string %}{{- items }}{%- else %}"
            f"{{%- for item in items if item['type'] == 'image' %}}{image}{{%- endfor %}}"
            "{%- for item in items if item['type'] == 'text' %}{{- item['text'] }}{%- endfor %}"
            "{%- endif %}{%- endmacro %}"
            "{%- if messages[0]['role'] != 'system' %}"
            f"{{{{- {quote(self.default_system)} }}}}{{%- endif %}}"
            "{%- for message in messages %}{%- if false %}"
            + turn("system", self.system, self.close_system)
            + turn("user", self.user, self.close_user)
            + turn("assistant", self.assistant, self.close_assistant)
            + "{%- else %}{{- raise_exception('unknown role ' + message['role']) }}{%- endif %}{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{- {quote(self.assistant)} }}}}{{%- endif %}}"
        )
