"""Samples: a request of lmms-eval, whatever its protocol, its prompt and images, and a digest of all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lmms_eval.api.instance import Instance
from PIL import Image

from sparsemm_eval.errors import ConfigError, SparseMMError, UnsupportedError
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.image_tokens import ImageTokens
from sparsemm_eval.model.images import rgb_image, whole_images_only
from sparsemm_eval.model_wrappers.answering.generation import Defaults, GenerationSettings


class SampleError(SparseMMError):
    """A sample could not be answered; the message begins with its task and document."""

    def __init__(self, name: str, reason: str):
        self.name = name
        super().__init__(f"{name}: {reason}")


@dataclass(frozen=True)
class Request:
    """What lmms-eval asks for, without its images.

    Attributes
    ----------
    index : int
        Position in the list that lmms-eval passed.
    repeat : int
        0, 1 … for several answers to one document.
    context : str
        The question as the task words it.
    visuals : callable
        ``(document) -> images`` (simple protocol) or ``(document) -> messages`` (chat protocol).
    """

    index: int
    task: str
    doc_id: int
    split: str
    repeat: int
    context: str
    visuals: Any
    settings: GenerationSettings

    @property
    def name(self) -> str:
        """Task and document, for messages."""
        return f"{self.task}/{self.doc_id}" + (f"#{self.repeat}" if self.repeat else "")


@dataclass(frozen=True)
class Sample:
    """A request with everything the model is given.

    Attributes
    ----------
    prompt : str
        With one placeholder per image.
    images : tuple of PIL.Image.Image
        As the processor gets them.
    length : int
        About how many prompt tokens; for sorting only.
    digest : str
        Hex SHA-256 of task, document, repeat, prompt, images and generation settings.
    evidence : tuple of int
        Which of the image's tokens show what the answer is read from, ascending; empty where the document
        does not say. No part of the digest, as no answer depends on it.
    """

    request: Request
    prompt: str
    images: tuple[Image.Image, ...]
    length: int
    digest: str
    evidence: tuple[int, ...] = ()

    @property
    def image_digest(self) -> str:
        """Hex SHA-256 of the images alone: samples of one document, which are not independent, share it."""
        content = hashlib.sha256()
        _add_images(content, self.images)
        return content.hexdigest()


@dataclass(frozen=True)
class SampleReader:
    """Reads documents and turns them into samples."""

    family: Family
    config: Any  # the checkpoint's
    processor: Any
    chat: bool  # whether lmms-eval speaks the chat protocol
    system_prompt: str | None
    pixel_limits: Mapping[str, int]

    def read(self, request: Request, datasets: Mapping[str, Any]) -> Sample:
        """Load the document's images and word the prompt.

        Parameters
        ----------
        datasets : mapping
            task -> split -> documents, as lmms-eval fills it.

        Raises
        ------
        SampleError
            If an image is missing or cannot be decoded, or the prompt cannot be made.
        UnsupportedError
            For videos and audio.
        """
        try:
            with whole_images_only():
                document = datasets[request.task][request.split][request.doc_id]
                prompt, visuals = self._prompt_and_visuals(request, request.visuals(document))
                upright = [_rgb(visual) for visual in visuals]
                images = tuple(
                    self.family.prepare_image(image, self.processor, self.pixel_limits) for image in upright
                )
                tokens = [self.family.image_tokens(self.config, *image.size, None) for image in images]
                evidence = _evidence(document, upright, tokens)
            prompt.encode()  # fails for half a surrogate pair, which no tokenizer takes
            length = len(self.processor.tokenizer(prompt)["input_ids"])
        except UnsupportedError as error:
            raise UnsupportedError(f"{request.name}: {error}") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise SampleError(
                request.name, f"its images or prompt could not be read ({type(error).__name__}: {reason})"
            ) from error
        length += sum(one.count for one in tokens)
        return Sample(request, prompt, images, length, _digest(request, prompt, images), evidence)

    def _prompt_and_visuals(self, request: Request, visuals: Any) -> tuple[str, list[Any]]:
        if self.chat:
            messages = [_plain_message(message) for message in visuals]
            parts = [part for message in messages for part in message["content"]]
            found = [part["url"] for part in parts if part["type"] == "image"]
            if self.family.messages_prompt is not None:
                return self.family.messages_prompt(self.processor, messages, self.system_prompt), found
            context = "\n".join(part["text"] for part in parts if part["type"] == "text")
        else:
            context, found = request.context, _flat(visuals)
        prompt = self.family.context_prompt(self.processor, context, len(found), self.system_prompt)
        return prompt, found


def _rgb(visual: Any) -> Image.Image:
    if visual is None:
        raise ValueError("an image is missing")
    return rgb_image(visual)


def _evidence(document: Any, images: Sequence[Image.Image], tokens: Sequence[ImageTokens]) -> tuple[int, ...]:
    """Tokens at full resolution under the boxes of a document's column ``evidence``; () without boxes.

    Boxes are (left, top, right, bottom) in pixels of the upright image. Other data sets have columns of this
    name too: what is no list of four numbers each is none of ours.
    """
    boxes = document.get("evidence") if isinstance(document, Mapping) else None
    if not isinstance(boxes, Sequence) or isinstance(boxes, str) or not all(map(_is_box, boxes)) or not boxes:
        return ()
    if len(images) != 1:
        raise ConfigError("evidence", f"boxes beside {len(images)} images", "boxes of exactly one image")
    # the family lays tokens on the image as the processor gets it
    ratios = [
        Fraction(new, old)
        for new, old in zip((tokens[0].width, tokens[0].height), images[0].size, strict=True)
    ]
    scaled = (tuple(Fraction(edge) * ratios[i % 2] for i, edge in enumerate(box)) for box in boxes)
    return tuple(sorted({token for box in scaled for token in tokens[0].region(box)}))


def _is_box(box: Any) -> bool:
    return isinstance(box, Sequence) and len(box) == 4 and all(isinstance(edge, (int, float)) for edge in box)


def _plain_message(message: Any) -> dict[str, Any]:
    record = message.model_dump() if hasattr(message, "model_dump") else dict(message)
    for part in record["content"]:
        if part["type"] not in ("text", "image"):
            raise UnsupportedError(f"a message with {part['type']}: only texts and images can be read")
    return record


def _flat(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    if not isinstance(visuals, (list, tuple)):
        return [visuals]
    return [
        visual for entry in visuals for visual in (entry if isinstance(entry, (list, tuple)) else [entry])
    ]


def _digest(request: Request, prompt: str, images: tuple[Image.Image, ...]) -> str:
    record = [
        request.task,
        request.split,
        request.doc_id,
        request.repeat,
        prompt,
        request.settings.canonical(),
    ]
    digest = hashlib.sha256(json.dumps(record).encode())
    _add_images(digest, images)
    return digest.hexdigest()


def _add_images(content: Any, images: tuple[Image.Image, ...]) -> None:
    for image in images:
        content.update(repr(image.size).encode())
        content.update(image.tobytes())


def read_requests(
    instances: Sequence[Instance], chat: bool, defaults: Defaults
) -> tuple[list[Request], set[str]]:
    """All requests to answer, padding left out.

    Parameters
    ----------
    chat : bool
        ``(context, messages, gen_kwargs, doc_id, task, split)`` instead of
        ``(context, gen_kwargs, visuals, doc_id, task, split)``.
    defaults : Defaults
        For what gen_kwargs leave open.

    Returns
    -------
    requests, unused
        ``unused``: names of gen_kwargs without meaning here.

    Raises
    ------
    SampleError
        If a request's gen_kwargs cannot be followed.
    """
    requests: list[Request] = []
    unused: set[str] = set()
    seen: Counter[tuple] = Counter()
    for index, instance in enumerate(instances):
        # evens out the processes' numbers of requests; its answer is never scored
        if (instance.metadata or {}).get("__padding_only__"):
            continue
        if chat:
            context, visuals, gen_kwargs, doc_id, task, split = instance.args
        else:
            context, gen_kwargs, visuals, doc_id, task, split = instance.args
        try:
            settings, names = GenerationSettings.parse(gen_kwargs, defaults)
        except ValueError as error:
            raise SampleError(f"{task}/{doc_id}", str(error)) from error
        unused.update(names)
        identity = (task, split, doc_id, instance.idx)
        requests.append(Request(index, task, doc_id, split, seen[identity], context, visuals, settings))
        seen[identity] += 1
    return requests, unused
