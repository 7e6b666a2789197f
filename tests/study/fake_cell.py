"""Stands in for ``sparsemm eval``: journals answers one by one, goes on where it was killed, writes results.

Its score is computed from what the journal holds, so a lost, doubled or foreign answer changes it.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import sys
import time
from pathlib import Path


def answer(model_args, model, task, doc):
    """What the real thing would compute: it depends on all settings, and on nothing else."""
    kept = {name: value for name, value in model_args.items() if name not in ("journal", "stats_dir")}
    text = json.dumps([model, kept, task, doc], sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) % 1000


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "model_args", "tasks", "output_path", "batch_size"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--log_samples", action="store_true")
    given = parser.parse_args()
    model_args = dict(pair.split("=", 1) for pair in given.model_args.split(","))
    behaviour = json.loads(os.environ.get("FAKE_CELL", "{}"))
    cell = Path(given.output_path).parent
    if given.model.partition("_")[2] in behaviour.get("hang", ()):
        time.sleep(600)
    if given.model.partition("_")[2] in behaviour.get("full", ()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    seen = cell / "seen"
    attempts = int(seen.read_text()) + 1 if seen.exists() else 1
    seen.write_text(str(attempts))
    (cell / "environment.json").write_text(
        json.dumps({name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")})
    )
    journal = Path(model_args["journal"])
    (journal / "runs").mkdir(parents=True, exist_ok=True)
    (journal / "runs" / "one.json").write_text("{}")
    results = {}
    for task in given.tasks.split(","):
        results[task] = evaluate(given, model_args, journal / task / "rank-00000.jsonl", task, behaviour)
    if attempts <= behaviour.get("fail", {}).get(given.model.partition("_")[2], 0):
        print("lmms-eval says\nValueError: this cell was told to fail")
        sys.exit(3)
    target = Path(given.output_path) / "reader" / "20260101_000000_results.json"
    target.parent.mkdir(parents=True)
    contents = {
        "config": {"model": given.model, "model_args": given.model_args},
        "results": results,
        "n-samples": {task: {"original": 99, "effective": given.limit} for task in results},
    }
    target.write_text(json.dumps(contents))


def evaluate(given, model_args, path, task, behaviour):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit("JournalError: the journal is in use by another run")
        file.seek(0)
        lines = [line for line in file if line.endswith(b"\n")]
        file.truncate(sum(map(len, lines)))
        known = [json.loads(line) for line in lines]
        for doc in range(len(known), given.limit):
            time.sleep(behaviour.get("delay", 0))
            record = {"doc": doc, "answer": answer(model_args, given.model, task, doc)}
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            known.append(record)
    assert [record["doc"] for record in known] == list(range(given.limit))
    return {"alias": task, "exact_match,none": sum(record["answer"] for record in known) / given.limit}


if __name__ == "__main__":
    main()
