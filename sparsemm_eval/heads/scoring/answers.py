"""Prompts and answers of a batch of samples, and the whole sequences the probe runs over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.model.families.base import image_positions
from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.image_tokens import Box, ImageTokens

TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class Sequences:
    """Prompts and answers of B samples, one after the other."""

    inputs: dict[str, torch.Tensor]  # padded on the right, without attention mask
    prompts: tuple[torch.Tensor, ...]  # [B] of int64 [N]: token ids without padding
    answers: tuple[list[int], ...]  # [B] of token ids, end of sequence left out

    def shown_tokens(
        self, model: PreTrainedModel, processor: Any, row: int, sample: AnchorSample
    ) -> tuple[ImageTokens | TextTokens, torch.Tensor]:
        """How a row's image or text lies on its tokens, and their positions in the prompt, int64 [count]."""
        if sample.image is None:
            return _text_tokens(processor, sample, self.prompts[row])
        grids = self.inputs.get("image_grid_thw")
        grid = None if grids is None else grids[row].tolist()
        tokens = family_of(model.config).image_tokens(model.config, *sample.image.size, grid)
        return tokens, image_positions(model.config, self.prompts[row], tokens)


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text in the prompt, each with its first character and one after its last."""

    spans: tuple[tuple[int, int], ...]

    def region(self, box: Box, include_base: bool = False) -> list[int]:
        """Indices of the tokens that hold any of the characters ``box[0]`` up to ``box[2]``."""
        return [i for i, (start, end) in enumerate(self.spans) if start < box[2] and box[0] < end]


def _text_tokens(
    processor: Any, sample: AnchorSample, prompt: torch.Tensor
) -> tuple[TextTokens, torch.Tensor]:
    text = _prompt_text(processor, sample)
    encoded = processor.tokenizer(text, return_offsets_mapping=True)
    if encoded.input_ids != prompt.tolist():
        raise UnsupportedError(f"sample {sample.name!r}: the processor does not tokenize its text as it is")
    first = text.index(sample.shown)
    last = first + len(sample.shown)
    held = [i for i, (start, end) in enumerate(encoded.offset_mapping) if start < last and first < end]
    spans = tuple((start - first, end - first) for start, end in (encoded.offset_mapping[i] for i in held))
    return TextTokens(spans), torch.tensor(held)


def encode_prompts(model: PreTrainedModel, processor: Any, samples: Sequence[AnchorSample]) -> dict[str, Any]:
    """Model inputs of the questions, padded on the left, on the model's device and in its dtype.

    Raises
    ------
    UnsupportedError
        If the processor has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UnsupportedError("the model's processor has no chat template, so questions cannot be put to it")
    if getattr(model.model, "rope_deltas", None) is not None:
        # Qwen2-VL remembers the last image's and would add it to the positions of texts without one.
        model.model.rope_deltas = None
    inputs = processor(
        images=[sample.image for sample in samples if sample.image is not None] or None,
        text=[_prompt_text(processor, sample) for sample in samples],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return dict(inputs.to(model.device, model.dtype))


def _prompt_text(processor: Any, sample: AnchorSample) -> str:
    """The question in the chat format, behind a placeholder of the image or the text that it is about."""
    content = [{"type": "image"}, {"type": "text", "text": sample.question}]
    if sample.image is None:
        content = [{"type": "text", "text": f"{sample.shown}\n{sample.question}"}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def ground_truth_answers(processor: Any, samples: Sequence[AnchorSample]) -> list[list[int]]:
    """The ground truth as tokens, for teacher forcing."""
    return [processor.tokenizer(sample.answer, add_special_tokens=False).input_ids for sample in samples]


@torch.inference_mode()
def generated_answers(model: PreTrainedModel, inputs: dict[str, Any], max_new_tokens: int) -> list[list[int]]:
    """What the model answers, greedily, with its own fast attention; the end of sequence is left out."""
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0
    )
    ends, answers = end_tokens(model), []
    for row in output[:, inputs["input_ids"].shape[1] :].tolist():
        length = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:length])
    return answers


def end_tokens(model: PreTrainedModel) -> set[int]:
    """Ids that end an answer; an image's is one, which could not be told from the prompt's own later."""
    ends = model.generation_config.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else ends
    return {*known, model.config.image_token_id}


def join(inputs: dict[str, Any], answers: Sequence[list[int]], pad: int) -> Sequences:
    """Put each answer behind its prompt and move the padding to the right.

    ``inputs`` is what ``encode_prompts`` gives. ``pad`` is any token id but that of image tokens, as nothing
    ever looks at it.
    """
    mask = inputs["attention_mask"].bool()
    prompts = tuple(row[keep] for row, keep in zip(inputs["input_ids"], mask, strict=True))
    joined = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}
    rows = [torch.cat([prompt, prompt.new_tensor(a)]) for prompt, a in zip(prompts, answers, strict=True)]
    joined["input_ids"] = pad_sequence(rows, batch_first=True, padding_value=pad)
    if "mm_token_type_ids" in inputs:
        joined["mm_token_type_ids"] = torch.zeros_like(joined["input_ids"])
        for row, (kinds, keep) in enumerate(zip(inputs["mm_token_type_ids"], mask, strict=True)):
            joined["mm_token_type_ids"][row, : len(prompts[row])] = kinds[keep]
    return Sequences(joined, prompts, tuple(answers))
