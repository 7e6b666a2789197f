"""Run records as files beside lmms-eval's results: reading them, and putting one into the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.files import write_json_atomically

RUN_SUFFIX = "_sparsemm_run.json"
SAMPLES_SUFFIX = "_sparsemm_samples.rank{rank}.jsonl"


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """All run records of a folder, oldest first, each with its ``path``."""
    paths = sorted(Path(folder).glob("*" + RUN_SUFFIX), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text(encoding="utf-8")) | {"path": str(path)} for path in paths]


def complete_results(results: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Put a run record into lmms-eval's results file, under the key ``sparsemm``, and return the whole.

    lmms-eval counts skipped samples as effective ones; they are taken out of ``n-samples``.

    Raises
    ------
    EvaluationError
        If fewer answers were measured than lmms-eval scored.
    """
    contents = json.loads(results.read_text(encoding="utf-8"))
    documents = {name.partition("#")[0] for name in run["skipped"]}  # #1, #2 … are further answers to one
    skipped = Counter(name.rpartition("/")[0] for name in documents)
    counts = contents.get("n-samples", {})
    for task, count in counts.items():
        count["effective"] -= skipped[task]
    scored = sum(count["effective"] for count in counts.values())
    if run["measured"]["samples"] < scored:
        measured = run["measured"]["samples"]
        raise EvaluationError(f"{results}: {scored} answers were scored, but only {measured} were measured")
    contents["sparsemm"] = dict(run)
    write_json_atomically(results, contents)
    return contents
