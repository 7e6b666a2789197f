"""What makes a tiny reader: a record of its tokens, its model and its training; built and saved from it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from sparsemm_eval.files import replacing
from sparsemm_eval.pages.readers.recipe import Stage
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens, build_tokenizer

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


@dataclass(frozen=True)
class Learning:
    """How a reader learns whose weights are not all its own.

    Attributes
    ----------
    prepare : callable
        Freezes what does not learn.
    save, restore : callable
        Write what was learned to a folder, and give it back to a prepared model.
    """

    prepare: Callable[[PreTrainedModel], None]
    save: Callable[[PreTrainedModel, ProcessorMixin, Path], None]
    restore: Callable[[PreTrainedModel, Path], None]


@dataclass(frozen=True)
class Reader:
    """One kind of reader.

    Attributes
    ----------
    name : str
        Also the name of its checkpoint folder.
    image_token : str
        Token that is repeated once per image feature.
    new_model : callable
        Makes a model with random float32 weights for a tokenizer; draws from torch's global generator.
    new_processor : callable
        Makes a processor of a tokenizer and a chat template.
    """

    name: str
    special: SpecialTokens
    chat: ChatFormat
    image_token: str
    new_model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    new_processor: Callable[[PreTrainedTokenizerFast, str], ProcessorMixin]
    recipe: tuple[Stage, ...]
    new_tokenizer: Callable[[SpecialTokens], PreTrainedTokenizerFast] = build_tokenizer
    learning: Learning | None = None

    def build(self, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Build model and processor, float32 and in eval mode; torch's global generator is left as it was."""
        tokenizer = self.new_tokenizer(self.special)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.new_model(tokenizer).eval()
        model.generation_config = GenerationConfig(do_sample=False, **special_ids(tokenizer))
        return model, self.new_processor(tokenizer, self.chat.template())


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Special token ids as model and generation configs name them."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def save(model: PreTrainedModel, processor: ProcessorMixin, directory: str | Path) -> None:
    """Write a copy of a reader, in bfloat16, to a folder that the transformers Auto classes load."""
    stored = copy.deepcopy(model).to(torch.bfloat16)
    # A loaded model remembers the folder it came from; files that ship must not.
    for config in (stored.config, stored.config.text_config, stored.config.vision_config):
        config.name_or_path = ""
        config.dtype = torch.bfloat16
    stored.save_pretrained(directory)
    processor.save_pretrained(directory)
    # Weights are written readable by their owner only; a copy is for whom the user's umask says.
    weights = Path(directory) / "model.safetensors"
    with replacing(weights) as copied:
        shutil.copyfile(weights, copied)
