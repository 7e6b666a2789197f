"""Head scoring against the literal way: eager attention matrices, token by token, a loop over all heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.bench.clock import timed
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample
from sparsemm_eval.heads.scoring.answers import encode_prompts, end_tokens, ground_truth_answers
from sparsemm_eval.heads.scoring.batch_scores import TARGET_RULES, ImageScore, ScoringRule
from sparsemm_eval.heads.scoring.drafts import EXTRA_TOKENS
from sparsemm_eval.heads.scoring.score_heads import Workload, score_heads
from sparsemm_eval.model.families.base import image_positions
from sparsemm_eval.model.families.registry import family_of

Strongest = list[list[list[list[int]]]]  # per token, layer and head: the strongest keys


@dataclass(frozen=True)
class Row:
    """Seconds per image of both ways.

    Attributes
    ----------
    batch_size : int
        Of this package's way; the literal one takes images one by one.
    images : int
        That this package scored; the literal way the first ``literal_images`` of them.
    ours, literal : float
        Seconds per image; on a CPU the processor's, so that other processes on the machine count little.
        ``literal`` is nan where it was not measured.
    same : bool or None
        Whether both gave the same scores for every image that both took.
    """

    mode: str
    batch_size: int
    images: int
    literal_images: int
    ours: float
    literal: float
    same: bool | None

    @property
    def ratio(self) -> float:
        """How many times as long the literal way takes."""
        return self.literal / self.ours

    def cells(self) -> list[str]:
        """Of the command's table."""
        measured = self.same is not None
        return [
            self.mode,
            str(self.batch_size),
            str(self.images),
            f"{1000 * self.ours:.1f}",
            f"{1000 * self.literal:.1f} ({self.literal_images} images)" if measured else "not run",
            f"{self.ratio:.1f}" if measured else "",
            {True: "yes", False: "no", None: ""}[self.same],
        ]


def measure(
    model: PreTrainedModel,
    processor: Any,
    anchor: Anchor,
    rule: ScoringRule,
    batch_sizes: Sequence[int],
    images: int,
    literal_images: int,
    seed: int = 0,
) -> list[Row]:
    """Score the first `images` of an anchor, and the first `literal_images` the literal way too.

    The model has SDPA attention, and has it again afterwards. There is a row per batch size.
    """
    literal, seconds = [], float("nan")
    samples = [anchor.sample(seed, index) for index in range(literal_images)]
    if samples:
        score_literally(model, processor, samples[0], rule)  # the first call of anything takes longer

        def one_by_one() -> list[ImageScore]:
            drawn = (anchor.sample(seed, index) for index in range(literal_images))
            return [score_literally(model, processor, sample, rule) for sample in drawn]

        literal, taken = timed(one_by_one, model.device)
        seconds = taken / literal_images
    rows = []
    for batch_size in batch_sizes:
        score_heads(model, processor, anchor, rule, Workload(min(images, batch_size), batch_size, seed))
        work = Workload(images, batch_size, seed)
        found, taken = timed(partial(score_heads, model, processor, anchor, rule, work), model.device)
        same = all(_same(found[index], score) for index, score in enumerate(literal)) if literal else None
        rows.append(Row(rule.mode, batch_size, images, literal_images, taken / images, seconds, same))
    return rows


def score_literally(
    model: PreTrainedModel, processor: Any, sample: AnchorSample, rule: ScoringRule
) -> ImageScore:
    """One image's scores as the paper describes them and the official scripts compute them.

    Prefill, then one token per step, all with eager attention that returns its matrices; after every step a
    loop over layers and heads takes each head's strongest keys.
    """
    truth = ground_truth_answers(processor, [sample])[0]
    forced = truth if rule.mode == "teacher" else None
    limit = len(truth) if forced else rule.max_new_tokens
    if rule.rule == "aligned":
        limit = min(limit, len(truth) + EXTRA_TOKENS)
    inputs = encode_prompts(model, processor, [sample])
    text_config = model.config.get_text_config()
    before = compat.attention_of(text_config)
    model.set_attn_implementation("eager")
    try:
        answer, strongest = _token_by_token(model, inputs, forced, limit, rule.topk)
    finally:
        model.set_attn_implementation(before)
    grid = inputs.get("image_grid_thw")
    grid_thw = None if grid is None else grid[0].tolist()
    tokens = family_of(model.config).image_tokens(model.config, *sample.image.size, grid_thw)
    places = image_positions(model.config, inputs["input_ids"][0], tokens)
    shape = (text_config.num_hidden_layers, text_config.num_attention_heads)
    scores, hits = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
    counted = 0
    for target in TARGET_RULES[rule.rule](processor.tokenizer, sample, answer):
        region = {index for box in target.boxes for index in tokens.region(box, rule.include_base)}
        keys = {int(places[index]) for index in region}
        counted += bool(keys)
        for layer in range(shape[0]):
            for head in range(shape[1]):
                for key in strongest[target.index][layer][head]:
                    if key in keys:
                        scores[layer, head] += 1 / len(keys)
                        hits[layer, head] += 1
    return ImageScore(counted, len(answer), scores, hits, sample.bad_boxes)


@torch.inference_mode()
def _token_by_token(
    model: PreTrainedModel, inputs: dict[str, Any], forced: list[int] | None, limit: int, topk: int
) -> tuple[list[int], Strongest]:
    ends = end_tokens(model)
    answer: list[int] = []
    strongest: Strongest = []
    output = model(**inputs, use_cache=True, output_attentions=True, logits_to_keep=1)
    while len(answer) < limit:
        token = int(output.logits[0, -1].argmax()) if forced is None else forced[len(answer)]
        if forced is None and token in ends:
            break
        strongest.append(
            [[head[-1].topk(topk).indices.tolist() for head in layer[0]] for layer in output.attentions]
        )
        answer.append(token)
        output = model(
            input_ids=inputs["input_ids"].new_tensor([[token]]),
            past_key_values=output.past_key_values,
            use_cache=True,
            output_attentions=True,
        )
    return answer, strongest


def _same(first: ImageScore, second: ImageScore) -> bool:
    return (
        first.answer_tokens == second.answer_tokens
        and torch.equal(first.hits, second.hits)
        and torch.allclose(first.scores, second.scores)
    )
