"""What can be looked at in a W&B run: the table of samples with thumbnails, and the map of kept entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm_eval.model.images import rgb_image
from sparsemm_eval.study.json_values import plain

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

#: (task, doc_id) -> image, or None where there is none at hand.
ImageOf = Callable[[str, int], "Image.Image | None"]

MAX_SAMPLES = 64
THUMBNAIL = 192
MAX_TEXT = 2000
COLUMNS = (
    "task",
    "doc_id",
    "image",
    "question",
    "answer",
    "target",
    "fullkv_answer",
    "identical",
    "kept_entries",
    "kv_bytes",
    "prompt_tokens",
    "score",
)
_TEXTS = ("task", "question", "answer", "target", "fullkv_answer")


def worst_first(samples: pd.DataFrame, limit: int = MAX_SAMPLES) -> list[dict[str, Any]]:
    """The samples most worth a look.

    Those that differ from FullKV's answer come first, the least similar texts before others; then, and where
    there is no FullKV answer, the lowest scores; then task and document.

    Parameters
    ----------
    samples : pandas.DataFrame
        One row per sample.
    limit : int
        Most rows.

    Returns
    -------
    list of dict
        In JSON types.
    """
    rows = [{name: plain(value) for name, value in row.items()} for row in samples.to_dict("records")]
    return sorted(rows, key=_disagreement)[:limit]


def _disagreement(row: dict[str, Any]) -> tuple[Any, ...]:
    from rapidfuzz.distance import Levenshtein

    reference = row.get("fullkv_answer")
    similarity = 1.0
    if reference is not None:
        similarity = Levenshtein.normalized_similarity(str(row.get("answer") or ""), str(reference))
    score = row.get("score")
    differs = row.get("identical") is not None and not row["identical"]
    return (not differs, similarity, float("inf") if score is None else score, row["task"], row["doc_id"])


def sample_table(
    samples: pd.DataFrame, image_of: ImageOf, folder: Path, limit: int = MAX_SAMPLES
) -> dict[str, Any]:
    """A table of samples with thumbnails.

    Parameters
    ----------
    samples : pandas.DataFrame
        One row per sample.
    image_of : callable
        See `ImageOf`.
    folder : pathlib.Path
        Where the thumbnails go, at most 192 pixels a side.
    limit : int
        Most rows, taken by `worst_first`.

    Returns
    -------
    dict
        ``columns``, ``rows`` (in the order of columns; images as paths or None), ``image_columns``.
    """
    rows = []
    for number, row in enumerate(worst_first(samples, limit)):
        path = _thumbnail(image_of(row["task"], row["doc_id"]), folder / f"sample-{number:03d}.png")
        cells = row | {"image": path, "kept_entries": row.get("effective_budget")}
        rows.append([_of_one_type(name, cells.get(name)) for name in COLUMNS])
    return {"columns": list(COLUMNS), "rows": rows, "image_columns": ["image"]}


def table_note(shown: int, total: int) -> str:
    """What the table of samples holds, in words."""
    return f"{shown} of {total} samples, worst disagreements with FullKV first, then lowest scores"


def save_budget_map(kept: Sequence[Sequence[float]], path: Path, title: str) -> None:
    """Draw the mean entries kept per head, layers down and KV heads across.

    Parameters
    ----------
    kept : [layers][KV heads]
    path : pathlib.Path
        Ends in .png.
    title : str
    """
    from matplotlib.figure import Figure

    layers, heads = len(kept), len(kept[0])
    figure = Figure(figsize=(2.5 + 0.25 * heads, 1.5 + 0.25 * layers), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(kept, cmap="viridis", vmin=0, aspect="auto")
    axes.set(xlabel="KV head", ylabel="layer", title=title)
    axes.set_xticks(range(0, heads, max(1, heads // 8)))
    axes.set_yticks(range(0, layers, max(1, layers // 8)))
    figure.colorbar(picture, ax=axes, label="entries kept, mean over samples")
    figure.savefig(path, dpi=100)


def _thumbnail(image: Image.Image | None, path: Path) -> str | None:
    if image is None:
        return None
    small = rgb_image(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(path)
    return str(path)


def _of_one_type(column: str, value: Any) -> Any:
    # W&B shows images, and sorts, in columns of one type only.
    if value is None:
        return None
    if column == "identical":
        return bool(value)
    if column in _TEXTS:
        text = str(value)
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return value
