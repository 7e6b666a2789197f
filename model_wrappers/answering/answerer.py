"""Answering a batch of samples: encode, generate under compression, decode, and cut where an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from loguru import logger
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from sparsemm_eval.decode.choice import RowSampling
from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.base import Family, image_positions
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.answering.samples import Sample, SampleError

#: A character may take several tokens (byte fallback), never more than this many.
_TOKENS_PER_CHARACTER = 4


class StopTexts(StoppingCriteria):
    """Ends a row as soon as its answer holds one of the stop texts, so that nothing is generated in vain.

    Parameters
    ----------
    tokenizer
        Decodes the answer's tail.
    texts : sequence of str
    prompt_tokens : int
        Length of the padded prompt N.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_tokens: int):
        self.tokenizer, self.texts, self.prompt_tokens = tokenizer, tuple(texts), prompt_tokens
        # One token more than the longest text needs: the text may begin inside a token.
        self.tail = _TOKENS_PER_CHARACTER * max(map(len, self.texts)) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are done: bool [B] for ``input_ids`` int64 [B, N + generated]."""
        start = max(self.prompt_tokens, input_ids.shape[1] - self.tail)
        tails = self.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        done = [any(text in tail for text in self.texts) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def cut_tokens(row: Sequence[int], ends: Sequence[int], pad: int) -> list[int]:
    """Generated tokens of one row, up to and including its end token; padding behind it is left out.

    Parameters
    ----------
    row : sequence of int
        Everything behind the prompt.
    ends : sequence of int
        End tokens.
    pad : int
        Fills rows that ended before others.
    """
    for index, token in enumerate(row):
        if token in ends:
            return list(row[: index + 1])
        if token == pad:
            return list(row[:index])
    return list(row)


def cut_text(text: str, until: Sequence[str]) -> str:
    """The text before the first stop text in it."""
    found = [text.index(stop) for stop in until if stop in text]
    return text[: min(found)] if found else text


class PromptTooLongError(SampleError):
    """A prompt does not fit the model's context."""


@dataclass(frozen=True)
class Answerer:
    """Answers batches with one model."""

    model: Any
    processor: Any
    family: Family
    session: Any  # the open compression session of the model
    device: torch.device  # where inputs go
    image_share: float | None = None  # of the image tokens, left by making images smaller; None: as they are

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        """Answer samples of equal generation settings in one ``generate`` call.

        Raises
        ------
        PromptTooLongError
            If a prompt fills the model's context.
        """
        inputs = self.encode(samples)
        settings = samples[0].request.settings
        tokenizer = self.processor.tokenizer
        generation = settings.for_model(self.model, tokenizer)
        prompt_tokens = inputs["input_ids"].shape[1]
        stops = [StopTexts(tokenizer, settings.until, prompt_tokens)] if settings.until else []
        draws = []
        if settings.samples:
            # from all that a sample is, so that it draws the same tokens whatever is answered beside it
            seeds = torch.tensor([int(one.digest[:16], 16) >> 1 for one in samples], device=self.device)
            draws.append(RowSampling(settings.choice, seeds, prompt_tokens))
        self.session.evidence = self._evidence(samples, inputs["input_ids"])
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                generation_config=generation,
                logits_processor=LogitsProcessorList(draws),
                stopping_criteria=StoppingCriteriaList(stops),
            )
        stats = self.session.stats
        is_image = inputs["input_ids"] == self.model.config.image_token_id
        shown = is_image.sum(-1).cpu()  # int64 [B]
        if self.image_share is not None:  # FullKV would hold all tokens of the images as they were given
            given = torch.tensor([self._image_tokens(sample) for sample in samples])
            stats = replace(stats, prompt_lengths=stats.prompt_lengths + given - shown)
            shown = given
        rows = output[:, prompt_tokens:].tolist()
        tokens = [cut_tokens(row, generation.eos_token_id, generation.pad_token_id) for row in rows]
        return [
            Answer(
                task=sample.request.task,
                doc_id=sample.request.doc_id,
                repeat=sample.request.repeat,
                text=self._decode(tokens[row], settings.until),
                tokens=tuple(tokens[row]),
                measured=Measurement.of_row(stats, row, int(shown[row])),
            )
            for row, sample in enumerate(samples)
        ]

    def encode(self, samples: Sequence[Sample]) -> Any:
        """Model inputs of a batch, on the model's device.

        Raises
        ------
        PromptTooLongError
            If a prompt fills the model's context.
        """
        images = [image for sample in samples for image in sample.images]
        if self.image_share is not None:
            images = [self.family.shrink_image(one, self.processor, self.image_share) for one in images]
        inputs = self.family.encode(self.processor, [sample.prompt for sample in samples], images)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        context = self.model.config.get_text_config().max_position_embeddings
        smaller = (
            "make images smaller with max_pixels, or " if "max_pixels" in self.family.pixel_limits else ""
        )
        for sample, length in zip(samples, lengths, strict=True):
            if length >= context:
                raise PromptTooLongError(
                    sample.request.name,
                    f"its prompt has {length} tokens, the model's context ends at {context}: "
                    f"{smaller}leave such samples out with on_error=skip",
                )
        return inputs.to(self.device, dtype=self.model.dtype)

    def _evidence(self, samples: Sequence[Sample], input_ids: torch.Tensor) -> torch.Tensor | None:
        """Where in the prompts [B, N] the samples' evidence lies, bool [B, N].

        None where none has any, or images are made smaller, so that it lies elsewhere.
        """
        if self.image_share is not None or not any(sample.evidence for sample in samples):
            return None
        ids, config = input_ids.cpu(), self.model.config
        marked = torch.zeros(ids.shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample.evidence:
                tokens = self.family.image_tokens(config, *sample.images[0].size, None)
                marked[row, image_positions(config, ids[row], tokens)[list(sample.evidence)]] = True
        return marked.to(input_ids.device)

    def _image_tokens(self, sample: Sample) -> int:
        """What a sample's images would take as they were given."""
        config = self.model.config
        return sum(self.family.image_tokens(config, *one.size, None).count for one in sample.images)

    def _decode(self, tokens: list[int], until: tuple[str, ...]) -> str:
        text = self.processor.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=self.family.clean_up_blanks
        )
        text = cut_text(text, until)
        return text.strip() if self.family.strip_answers else text


def answer_in_parts(
    samples: Sequence[Sample], answer: Callable[[Sequence[Sample]], list[Answer]]
) -> Iterator[tuple[Sequence[Sample], list[Answer] | Exception]]:
    """Answer a batch, halved as often as memory demands; a failure is traced to its sample.

    Yields
    ------
    samples, answers or exception
        Parts of the batch in order. An exception comes with the one sample that caused it.
    """
    outcome = _attempt(samples, answer)
    if not isinstance(outcome, Exception):
        yield samples, outcome
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(samples) == 1:
        yield samples, outcome
        return
    if is_out_of_memory(outcome):
        logger.warning(f"out of memory with {len(samples)} samples in a batch: going on with half as many")
        middle = (len(samples) + 1) // 2
        parts = [samples[:middle], samples[middle:]]
    else:
        logger.warning(
            f"a batch of {len(samples)} samples failed ({_brief(outcome)}): trying them one by one"
        )
        parts = [[sample] for sample in samples]
    for part in parts:
        yield from answer_in_parts(part, answer)


def _attempt(
    samples: Sequence[Sample], answer: Callable[[Sequence[Sample]], list[Answer]]
) -> list[Answer] | Exception:
    try:
        return answer(samples)
    except UnsupportedError:
        raise
    except Exception as error:
        # The traceback holds the failed attempt's tensors; where another attempt follows they must go.
        return error if len(samples) == 1 else error.with_traceback(None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def as_sample_error(sample: Sample, error: BaseException) -> SampleError:
    """The error of one sample, with its task and document in front."""
    if isinstance(error, SampleError):
        return error
    return SampleError(sample.request.name, f"no answer could be generated ({_brief(error)})")
