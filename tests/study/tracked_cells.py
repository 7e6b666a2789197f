"""Cell folders as a running cell leaves them, and the results of such a cell."""

import hashlib
import json

import pandas as pd

RUN = "a" * 64
TASK = "pages_qa"


def make_cell(study, method="snapkv", budget=32, tasks=(TASK,)):
    """A cell folder below ``study``, with its ``cell.json``; returns (cell, folder)."""
    name = f"tiny-{method}-b{budget}-{tasks[0]}"
    cell = {
        "id": name,
        "study": "tiny",
        "model": "tiny-reader",
        "model_name": f"llava_{method}",
        "family": "llava",
        "pretrained": "tiny-reader",
        "method": method,
        "budget": budget,
        "seed": None,
        "tasks": list(tasks),
        "knobs": {"window": 8, "kernel_size": 5},
        "model_args": {"dtype": "float32", "journal": "journal", "stats_dir": "stats"},
        "limit": 6,
        "batch_size": 2,
        "nproc": 1,
        "arguments": ["--model", f"llava_{method}"],
        "hash": hashlib.sha256(name.encode()).hexdigest(),
        "reference": None,
    }
    folder = study / "cells" / name
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(cell))
    return cell, folder


def journal_line(doc_id, task=TASK, run=RUN, text="x", budget=32.0, kv_bytes=1000):
    """One line of a journal, without what nobody but the wrappers reads."""
    record = {
        "key": hashlib.sha256(f"{run}{task}{doc_id}".encode()).hexdigest(),
        "run": run,
        "sample": hashlib.sha256(f"{task}{doc_id}".encode()).hexdigest(),
        "task": task,
        "doc_id": doc_id,
        "repeat": 0,
        "text": text,
        "tokens": [1, 2],
        "measured": {"effective_budget": budget, "kv_bytes": kv_bytes, "kv_bytes_full": 9 * kv_bytes},
    }
    return json.dumps(record) + "\n"


def append_journal(folder, text, task=TASK, run=RUN, rank=0):
    """Append text, whole lines or not, to a cell's journal."""
    runs = folder / "journal" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / f"{run}.json").exists():
        (runs / f"{run}.json").write_text("{}")
    path = folder / "journal" / task / f"rank-{rank:05d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def append_answers(folder, doc_ids, **values):
    """Append whole answers to a cell's journal."""
    where = {key: values[key] for key in ("task", "run") if key in values}
    append_journal(folder, "".join(journal_line(doc_id, **values) for doc_id in doc_ids), **where)


def write_results(folder, kept=((32.0, 16.0), (8.0, 64.0), (1.0, 2.0))):
    """lmms-eval's results file and the run record of a cell that has ended."""
    record = {"kept_mean": [list(row) for row in kept], "measured": {"effective_budget": 20.5}}
    results = folder / "lmms" / "tiny-reader" / "20260101_000000_results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"results": {TASK: {"exact_match,none": 0.5}}, "sparsemm": record}))
    stats = folder / "stats" / "20260101T000000_llava_snapkv_aaaaaaaaaaaa_sparsemm_run.json"
    stats.parent.mkdir(exist_ok=True)
    stats.write_text(json.dumps(record))


def result_row(cell, task=TASK, **values):
    """A row of the results table."""
    return {
        "study": cell["study"],
        "cell": cell["id"],
        "task": task,
        "metric": "exact_match",
        "score": 0.5,
        "stderr": float("nan"),
        "samples": 6,
        "budget": float(cell["budget"]),
        "ratio": 0.1,
        "gqa": "mean",
        "effective_budget": 20.5,
        "effective_budget_min": 20.0,
        "effective_budget_max": 21.0,
        "kv_bytes": 1000.0,
        "kv_bytes_peak": 4000,
        "prefill_seconds": 0.25,
        "decode_seconds": 0.01,
        "agreement": 0.5,
        "scores": json.dumps({"exact_match": 0.5, "other": 0.25}),
        "version_torch": "2.15.0",
        "head_scores_hash": None,
        "config_hash": cell["hash"],
        **values,
    }


def sample_rows(cell, count, task=TASK):
    """The samples table of a cell: every second answer is FullKV's, odd documents score."""
    rows = [
        {
            "study": cell["study"],
            "cell": cell["id"],
            "model": cell["model"],
            "method": cell["method"],
            "task": task,
            "doc_id": doc_id,
            "sample": f"digest-{doc_id}",
            "question": f"question {doc_id}",
            "answer": f"answer {doc_id}",
            "target": f"target {doc_id}",
            "score": float(doc_id % 2),
            "effective_budget": 20.5,
            "kv_bytes": 1000,
            "prompt_tokens": 300,
            "tokens": 5,
            "fullkv_answer": f"answer {doc_id}" if doc_id % 2 else "something else",
            "identical": bool(doc_id % 2),
        }
        for doc_id in range(count)
    ]
    return pd.DataFrame(rows)
