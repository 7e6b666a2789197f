"""Results as JSON, a Markdown table and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsemm_eval.bench.model_runs import Result
from sparsemm_eval.files import write_text_atomically

GIGABYTE = 1e9


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results as JSON types, one flat record each."""
    flat = []
    for result in results:
        fields = asdict(result)
        flat.append({**fields.pop("setting"), **fields, "rest": result.rest})
    return flat


COLUMNS = {
    "method": lambda row: row["method"],
    "mode": lambda row: row["mode"],
    "prompt": lambda row: str(row["length"]),
    "batch": lambda row: str(row["batch"]),
    "budget": lambda row: "–" if row["method"] == "fullkv" else str(row["budget"]),
}
LATENCY = {
    "prefill ms": lambda row: f"{row['prefill_ms']:.1f}",
    "ms/token": lambda row: f"{row['ms_per_token']:.3f}",
    "floor ms": lambda row: f"{row['floor_ms']:.3f}",
    "of copy bandwidth": lambda row: f"{row['share']:.0%}",
    "GB moved": lambda row: _gigabytes(row["moved_bytes"]),
    "GB weights": lambda row: _gigabytes(row["weights"]),
    "GB KV": lambda row: _gigabytes(row["kv"]),
    "GB rest": lambda row: _gigabytes(row["rest"]),
    "GB peak": lambda row: _gigabytes(
        None if row["peak_prefill"] is None else max(row["peak_prefill"], row["peak_decode"])
    ),
}
THROUGHPUT = {"samples/s": lambda row: f"{row['samples_per_s']:.3f}"}


def _gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / GIGABYTE:.3f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a row per result; what failed says why instead of figures."""
    figures = THROUGHPUT if any("samples_per_s" in row for row in rows) else LATENCY
    lines = [" | ".join([*COLUMNS, *figures]), " | ".join(["---"] * (len(COLUMNS) + len(figures)))]
    for row in rows:
        cells = [column(row) for column in COLUMNS.values()]
        if "error" in row:
            cells += [row["error"], *[""] * (len(figures) - 1)]
        else:
            cells += [column(row) for column in figures.values()]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def plot(rows: Sequence[dict[str, Any]], quantity: str, label: str, path: Path) -> None:
    """A quantity over prompt length, a line per method, mode and batch size."""
    from sparsemm_eval.heads.figures.plots import new_figure, save_figure

    figure = new_figure(path, width=7, height=4.5)
    axes = figure.subplots()
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row.get(quantity) is not None:
            key = (row["method"], row["mode"], row["batch"])
            lines.setdefault(key, []).append((row["length"], row[quantity]))
    for (method, mode, batch), points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{method}, {mode}, batch {batch}")
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize="small")
    save_figure(figure, path)


def save(content: dict[str, Any], folder: Path, name: str, quantity: str, label: str) -> None:
    """Write ``name``.json, .md and .png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write_text_atomically(folder / f"{name}.md", markdown(content["rows"]))
    plot(content["rows"], quantity, label, folder / f"{name}.png")
