"""Head scores and masked heads of a run, checked against the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loguru import logger

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.model.masking import Head, random_heads, top_heads
from sparsemm_eval.model.text_decoder import find_text_decoder
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.model_wrappers.methods import Method


@dataclass(frozen=True)
class Heads:
    """What a run does by head.

    Attributes
    ----------
    scores : HeadScores or None
        None for methods that need none.
    masked : list of (layer, query head)
    """

    scores: HeadScores | None
    masked: list[Head]


def heads_of(model: Any, arguments: Arguments, method: Method) -> Heads:
    """Find the head scores, where the method needs them, and the heads to mask.

    Raises
    ------
    HeadScoreError
        If there are none, or they do not fit the model.
    ConfigError
        If more heads shall be masked than there are.
    """
    given = arguments.knobs.get("head_scores")
    if not method.needs_head_scores:
        if given is not None:
            logger.info(f"head_scores={given!r} plays no part in {method.compression}")
        return Heads(None, [])
    if not isinstance(given, (str, HeadScores, type(None))):
        raise ConfigError("head_scores", given, "a name or the path of a head-score file")
    decoder = find_text_decoder(model)
    scores = resolve(given, arguments.pretrained)
    scores.check_fits(decoder.num_layers, decoder.num_heads)
    if method.masked is None:
        return Heads(scores, [])
    visual = top_heads(scores, arguments.mask_ratio)
    if method.masked == "visual":
        return Heads(scores, visual)
    drawn = random_heads(
        decoder.num_layers, decoder.num_heads, arguments.mask_ratio, arguments.mask_seed, exclude=visual
    )
    return Heads(scores, drawn)
