"""What can be looked at in a W&B run: samples with pictures, the score over documents, the entries kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from sparsemm_eval.heads.figures.plots import draw_map
from sparsemm_eval.study.cell_files import CellFiles
from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.report.images import thumbnails

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure

MAX_SAMPLES = 64
MAX_TEXT = 2000
MAX_POINTS = 200
COLUMNS = (
    *("task", "doc_id", "image", "question", "answer", "target", "fullkv_answer", "identical"),
    *("effective_budget", "kv_bytes", "prompt_tokens", "score"),
)


def worst_first(samples: pd.DataFrame, limit: int = MAX_SAMPLES) -> pd.DataFrame:
    """The samples most worth a look: answers unlike FullKV's, then the lowest scores, then document order."""
    apart = samples["identical"].eq(False).fillna(False)
    order = ["apart", "score", "task", "doc_id"]
    return samples.assign(apart=apart).sort_values(order, ascending=[False, True, True, True]).head(limit)


def sample_table(cell: CellFiles, samples: pd.DataFrame) -> wandb.Table:
    """A W&B table of the `worst_first` samples, with pictures where a task's images are on this machine."""
    import wandb

    chosen = worst_first(samples)
    pictures, _ = thumbnails([cell], set(zip(chosen["task"], chosen["doc_id"], strict=True)))
    rows = []
    for row in chosen.to_dict("records"):
        uri = pictures.get(f"{row['task']}/{row['doc_id']}")
        cells = row | {"image": None if uri is None else wandb.Image(_decoded(uri))}
        rows.append([cells[name] if name == "image" else _shortened(plain(cells[name])) for name in COLUMNS])
    return wandb.Table(columns=list(COLUMNS), data=rows)


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def _shortened(value: Any) -> Any:
    long = isinstance(value, str) and len(value) > MAX_TEXT
    return value[: MAX_TEXT - 1] + "…" if long else value


def running_scores(samples: pd.DataFrame, limit: int = MAX_POINTS) -> list[dict[str, float]]:
    """Mean score over the first documents of each task, in document order.

    ``document`` (number of documents so far, ascending) and ``running_score/<task>``; at most about `limit`
    points, spread evenly and with the last.
    """
    rows: dict[int, dict[str, float]] = {}
    for task, group in samples.dropna(subset=["score"]).groupby("task", sort=True):
        means = group.sort_values("doc_id", kind="stable")["score"].astype(float).expanding().mean().tolist()
        stride = -(-len(means) // limit)
        for index in range(len(means) - 1, -1, -stride):
            rows.setdefault(index + 1, {})[f"running_score/{task}"] = means[index]
    return [{"document": document, **rows[document]} for document in sorted(rows)]


def budget_map(kept: Sequence[Sequence[float]], title: str) -> Figure:
    """Mean entries kept per head, [layers][KV heads]: layers down and KV heads across."""
    from matplotlib.figure import Figure

    layers, heads = len(kept), len(kept[0])
    figure = Figure(figsize=(2.5 + 0.25 * heads, 1.5 + 0.25 * layers), layout="constrained")
    draw_map(figure, kept, "KV head", title, label="entries kept, mean over samples", vmin=0)
    return figure
