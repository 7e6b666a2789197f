"""A sheet of pictures: the attention of the best and the worst heads over an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemm_eval.heads.figures.plots import BLUE, new_figure, save_figure
from sparsemm_eval.heads.figures.word_attention import WordAttention
from sparsemm_eval.heads.scores.table import Head, HeadScores
from sparsemm_eval.model.image_tokens import Box


def chosen_heads(scores: HeadScores, best: int, worst: int) -> list[Head]:
    """The best heads, best first, then the worst, worst last."""
    order = scores.best_heads(scores.table.numel())
    return [*order[:best], *order[len(order) - worst :]]


def save_sheet(
    seen: WordAttention,
    scores: HeadScores,
    heads: Sequence[Head],
    path: str | Path,
    columns: int = 3,
    marks: Sequence[Box] = (),
) -> None:
    """Draw one panel per head: the image with the head's attention over it.

    Each panel has its own scale, from no attention to the head's strongest cell; the title says how much of
    the head's attention is on the image at all. ``marks`` are places to draw a frame around, where it is
    known what the word should be read from.

    Raises
    ------
    HeadScoreError, ConfigError
        If the scores are another model's, or the picture cannot be written.
    """
    scores.check_fits(*seen.maps.shape[:2])
    rows = -(-len(heads) // columns)
    height = seen.image.height / seen.image.width
    figure = new_figure(path, width=3.2 * columns, height=(3.1 * height + 0.45) * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, head in zip(panels, heads, strict=False):
        _draw(panel, seen, head, float(scores.table[head] / scores.table.sum()))
        for left, top, right, bottom in marks:
            corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
            panel.plot(*corners, color=BLUE, linewidth=1)
    figure.suptitle(f"attention while writing {seen.word!r}", fontsize=10)
    save_figure(figure, path)


def _draw(panel: Any, seen: WordAttention, head: Head, share: float) -> None:
    heat = seen.maps[head]
    left, top, right, bottom = seen.area
    panel.imshow(seen.image)
    panel.imshow(
        heat.numpy(),
        cmap="autumn_r",
        alpha=(0.65 * heat / heat.max().clamp_min(1e-9)).numpy(),  # the text stays legible
        extent=(left, right, bottom, top),
        vmin=0,
    )
    # the grid can reach over the image
    panel.set_xlim(0, seen.image.width)
    panel.set_ylim(seen.image.height, 0)
    panel.set_title(
        f"layer {head[0]} head {head[1]}: {share:.1%} of the score\n{float(heat.sum()):.1%} on the image",
        fontsize=8,
    )
