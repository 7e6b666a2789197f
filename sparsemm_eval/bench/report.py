"""Results as JSON, a Markdown table and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsemm_eval.bench.model_runs import PLAIN_MODES, compresses
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.methods import fullkv

FULLKV = fullkv.METHOD.name


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The processor's name; what Python and psutil tell of it is an architecture at most."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.3f}"


def _highest(row: dict[str, Any]) -> int | None:
    return None if row["peak_prefill"] is None else max(row["peak_prefill"], row["peak_decode"])


COLUMNS = {
    "method": lambda row: row["method"],
    "mode": lambda row: row["mode"],
    "prompt": lambda row: str(row["length"]),
    "batch": lambda row: str(row["batch"]),
    "budget": lambda row: str(row["budget"]) if compresses(row["method"]) else "–",
}
LATENCY = {
    "prefill ms": lambda row: f"{row['prefill_ms']:.1f}",
    "ms/token": lambda row: f"{row['ms_per_token']:.3f}",
    "tokens/s": lambda row: f"{1000 * row['batch'] / row['ms_per_token']:.1f}",
    "floor ms": lambda row: f"{row['floor_ms']:.3f}",
    "of memory bandwidth": lambda row: f"{row['share']:.0%}",
    "GB moved": lambda row: _gigabytes(row["moved_bytes"]),
    "GB weights": lambda row: _gigabytes(row["weights"]),
    "GB KV": lambda row: _gigabytes(row["kv"]),
    "GB rest": lambda row: _gigabytes(row["rest"]),
    "GB peak": lambda row: _gigabytes(_highest(row)),
}
SPEED_UPS = {
    "× FullKV": lambda row: _ratio(row.get("times_fullkv")),
    "× transformers": lambda row: f"{_ratio(row.get('times_plain'))} {row.get('plain_mode', '')}".strip(),
}
THROUGHPUT = {"samples/s": lambda row: f"{row['samples_per_s']:.3f}"}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a row per result; what failed says why instead of figures."""
    rows = with_speed_ups(rows)
    figures = THROUGHPUT if any("samples_per_s" in row for row in rows) else LATENCY
    figures |= SPEED_UPS if any("times_fullkv" in row or "times_plain" in row for row in rows) else {}
    lines = []
    for row in rows:
        failed = "error" in row
        found = [row["error"], *[""] * (len(figures) - 1)] if failed else [f(row) for f in figures.values()]
        lines.append([*(column(row) for column in COLUMNS.values()), *found])
    return table([*COLUMNS, *figures], lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_speed_ups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with how many times as fast it is as two fair baselines of its prompt and batch.

    ``times_fullkv``: FullKV in the same mode. ``times_plain``: the uncompressed model with the cache of
    transformers that was fastest there, ``plain_mode``. Rows of what is not there have none.
    """
    speed = {
        (row["method"], row["mode"], row["length"], row["batch"]): row.get("samples_per_s", 0.0)
        or 1 / row["ms_per_token"]
        for row in rows
        if "error" not in row
    }
    found = []
    for row in rows:
        place = row["length"], row["batch"]
        own = speed.get((row["method"], row["mode"], *place))
        plain = max(PLAIN_MODES, key=lambda mode: speed.get((FULLKV, mode, *place), 0.0))
        bases = {
            "times_fullkv": speed.get((FULLKV, row["mode"], *place)) if compresses(row["method"]) else None,
            "times_plain": speed.get((FULLKV, plain, *place)) if row["mode"] != plain else None,
        }
        ratios = {name: own / base for name, base in bases.items() if own and base}
        found.append(row | ratios | ({"plain_mode": plain} if "times_plain" in ratios else {}))
    return found


def compare(old: Any, new: Any) -> list[dict[str, Any]]:
    """What two result files measured alike: one row for each figure, with new over old as ``slower``.

    ``slower`` above 1 is worse: milliseconds and bytes as they are, samples per second inverted.
    """
    before, rows = dict(_measured(old)), []
    for place, row in _measured(new):
        for figure in FIGURES:
            pair = before.get(place, {}).get(figure), row.get(figure)
            if None not in pair:
                slower = pair[0] / pair[1] if figure == "samples_per_s" else pair[1] / pair[0]
                rows.append({"what": " ".join(map(str, place)), "figure": figure, "slower": slower})
    return rows


def device_of(content: Any) -> str:
    """The device that a result file was measured on."""
    facts = content if isinstance(content, dict) else {}
    return str(facts.get("device", facts.get("environment", {}).get("device", "unknown")))


#: What tells measurements apart: in a row itself, or in what it is part of.
MEASURED = (
    "shape",
    "dtype",
    "method",
    "mode",
    "length",
    "batch",
    "budget",
    "kv_heads",
    "group",
    "entries",
    "ragged",
)
FIGURES = ("ms_per_token", "prefill_ms", "samples_per_s", "microseconds", "kv")


def _measured(
    content: Any, section: str = "", around: dict[str, Any] | None = None
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every row of figures in a result file of any of our commands, and what it measures."""
    if isinstance(content, list):
        for part in content:
            yield from _measured(part, section, around)
    if not isinstance(content, dict):
        return
    known = {**(around or {}), **{name: content[name] for name in MEASURED if name in content}}
    if "error" not in content and any(name in content for name in FIGURES):
        yield (section, *(known.get(name, "") for name in MEASURED)), content
    for name, part in content.items():
        inside = f"{section} {name}".strip() if name != "rows" else section
        yield from _measured(part, inside, known)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(rows: Sequence[dict[str, Any]], quantity: str, label: str, path: Path) -> None:
    """A quantity over prompt length, a line per method, mode and batch size."""
    import pandas as pd

    from sparsemm_eval.heads.figures.plots import new_figure, save_figure

    figure = new_figure(path, width=7, height=4.5)
    axes = figure.subplots()
    frame = pd.DataFrame(rows, columns=["method", "mode", "batch", "length", quantity]).dropna()
    for (method, mode, batch), line in frame.groupby(["method", "mode", "batch"], sort=False):
        line = line.sort_values("length")
        name = f"{method}, {mode}, batch {batch}"
        axes.plot(line["length"], line[quantity], marker="o", label=name)
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if len(frame):
        axes.legend(fontsize="small")
    save_figure(figure, path)


def save(content: dict[str, Any], folder: Path, name: str, shown: str) -> None:
    """Write ``name``.json and its table, ``name``.md, into a folder."""
    write_text_atomically(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write_text_atomically(folder / f"{name}.md", shown)
