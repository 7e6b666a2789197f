"""Study folders for tests: what the runner, lmms-eval and the wrapper write, with invented answers."""

import hashlib
import itertools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from sparsemm_eval.config import CompressionConfig

LAYERS, HEADS, BYTES_PER_ENTRY = 6, 8, 256
EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 2'>\"&</textarea>"
METRICS = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}
PAGES = {f"pages_many_{count}": count for count in (2, 4, 8)}  # tasks over prompts of several lengths
METRICS |= dict.fromkeys(PAGES, "exact_match")


@dataclass(frozen=True)
class Spec:
    """One cell to invent; ``state`` other than done leaves no results."""

    method: str
    budget: int | None = None
    seed: int | None = None
    knobs: dict = field(default_factory=dict)
    tasks: tuple[str, ...] = ("pages_qa",)
    model: str = "tiny-reader"
    pretrained: str = "tiny-reader"
    state: str = "done"
    error: str | None = None

    @property
    def id(self):
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{self.model}-{self.method}-b{self.budget or 0}-{self.tasks[0]}-{digest}"


def grid(budgets=(16, 32, 64, 128), kernels=(5, 7), tasks=("pages_qa", "pages_ocr"), **common):
    """FullKV and five methods, one process per task, two seeds of random, one failed and one waiting cell."""
    specs = [Spec("fullkv", tasks=(task,), **common) for task in tasks]
    for task, budget, kernel in itertools.product(tasks, budgets, kernels):
        knobs = {"window": 8, "kernel_size": kernel}
        specs += [
            Spec(method, budget, None, knobs, (task,), **common)
            for method in ("snapkv", "pyramidkv", "adakv", "sparsemm")
        ]
        specs += [Spec("random", budget, seed, knobs, (task,), **common) for seed in (0, 1)]
    failed = {"state": "failed", "error": f"out of memory at <b>sample 3</b> {EVIL}"}
    return [
        *specs,
        Spec("snapkv", 8, None, {"window": 8, "kernel_size": 5}, ("pages_qa",), **common, **failed),
        Spec("adakv", 256, None, {"window": 8, "kernel_size": 5}, ("pages_qa",), **common, state="pending"),
    ]


def write_study(folder: Path, specs, documents=30, skipped=()):
    """Write a study and return its cells' ids.

    ``skipped``: documents that no cell but FullKV has answered.
    """
    for spec in specs:
        write_cell(folder, spec, documents, skipped)
    ids = [spec.id for spec in specs]
    settings = {"models": [{"name": "tiny-reader"}], "budgets": sorted({s.budget or 0 for s in specs})}
    description = {
        "name": folder.name,
        "created": "2026-01-02T03:04:05+00:00",
        "settings": settings,
        "cells": ids,
    }
    _json(folder / "study.json", description)
    return ids


def write_cell(root, spec, documents, skipped):
    """One cell's files."""
    folder = root / "cells" / spec.id
    known = {"budget": spec.budget, "seed": spec.seed, "method": spec.method, "model": spec.model}
    cell = {
        **known,
        "id": spec.id,
        "study": root.name,
        "model_name": f"llava_{spec.method}",
        "family": "llava",
        "pretrained": spec.pretrained,
        "tasks": list(spec.tasks),
        "knobs": spec.knobs,
        "model_args": {"pretrained": spec.pretrained, **spec.knobs},
        "limit": documents,
        "batch_size": 4,
        "nproc": 1,
        "arguments": ["--model", f"llava_{spec.method}"],
        "include_path": None,
        "identity": {"settings": spec.id},
        "hash": hashlib.sha256(spec.id.encode()).hexdigest(),
        "comparison": {"pretrained": spec.pretrained, "model": spec.model},
    }
    _json(folder / "cell.json", cell)
    if spec.state == "pending":
        return
    results = "lmms/m/20260102_030405_results.json"
    status = {"state": spec.state, "attempts": 1, "started": "2026-01-02T03:04:05+00:00", "seconds": 12.5}
    done = spec.state == "done"
    status |= {
        "hash": cell["hash"],
        "returncode": 0 if done else 1,
        "error": spec.error,
        "results": results if done else None,
    }
    _json(folder / "status.json", status)
    if not done:
        return
    scores, samples = {}, []
    for task in spec.tasks:
        left_out = skipped if spec.method != "fullkv" else ()
        rows = [answer(spec, task, doc) for doc in range(documents) if doc not in left_out]
        _jsonl(folder / "lmms/m" / f"20260102_030405_samples_{task}.jsonl", [logged for logged, _ in rows])
        metric = METRICS[task]
        mean = sum(logged[metric] for logged, _ in rows) / len(rows)
        scores[task] = {"alias": task, f"{metric},none": mean, f"{metric}_stderr,none": 0.5}
        samples += [measured for _, measured in rows]
    stem = f"20260102T030405_llava_{spec.method}_{cell['hash'][:12]}"
    _jsonl(folder / "stats" / f"{stem}_sparsemm_samples.rank0.jsonl", samples)
    _json(folder / results, {"results": scores, "sparsemm": record(spec, cell, samples, stem, len(skipped))})


RESTORED = 1  # the document whose answer came from the journal


def answer(spec, task, doc):
    """lmms-eval's and the wrapper's record of one invented answer."""
    # A document is as hard for every configuration; larger budgets and good heads reach the harder ones.
    hardness = random.Random(f"{task} {doc}").random()
    kept = effective_budget(spec, doc, task)
    strength = {"fullkv": 9.0, "sparsemm": 0.06, "adakv": 0.012, "snapkv": 0.01, "pyramidkv": 0.008}
    reach = strength.get(spec.method, 0.004) * kept * (1.2 if spec.knobs.get("kernel_size") == 7 else 1.0)
    luck = random.Random(f"{spec.id} {doc}").uniform(-0.15, 0.15)
    right = reach + luck > hardness or spec.method == "fullkv"
    target = f"{task} {doc}"
    text = target if right else (EVIL if doc == 3 else f"wrong {doc} {round(kept)}")
    score = float(right) if task == "pages_qa" else (1.0 if right else max(0.0, 0.9 - hardness))
    prompt = (200 + 10 * doc) * PAGES.get(task, 1)
    digest = hashlib.sha256(f"{task} {doc}".encode()).hexdigest()
    logged = {"doc_id": doc, "input": f"value of {doc}?", "target": target, "filtered_resps": text}
    entry = LAYERS * HEADS * BYTES_PER_ENTRY
    measured = {
        **{
            "task": task,
            "doc_id": doc,
            "repeat": 0,
            "sample": digest,
            "images": f"image of {task} {doc}",
            "answer": text,
            "tokens": 5,
        },
        **{"prompt_tokens": prompt, "effective_budget": kept, "kv_bytes": int(kept * entry)},
        **{"kv_bytes_full": prompt * entry, "batch": 2, "kv_bytes_peak_per_call": prompt * entry},
        **{"kv_bytes_end": int(kept * entry) + entry, "prefill_seconds": 0.1 + 0.001 * doc},
        **{"decode_seconds_per_step": None if doc == 0 else 0.002 + 1e-5 * kept, "seconds": 0.2},
        **{"kv_bytes_reserve": 7.0 * doc, "restored": doc == RESTORED},
    }
    if task == "pages_qa":  # the documents of the other task have no boxes
        share = min(kept / prompt, 1.0)
        measured |= {"evidence_tokens": 6, "evidence_recall": share**0.5, "evidence_chance": share}
        measured |= {"evidence_recall_mean": share**0.7}
    return {**logged, METRICS[task]: score}, measured


def effective_budget(spec, doc, task=""):
    """Entries per KV head: SparseMM loses what its strongest heads have beyond the prompt."""
    prompt = (200.0 + 10 * doc) * PAGES.get(task, 1)
    if spec.budget is None:
        return prompt
    return spec.budget * (0.7 if spec.method == "sparsemm" else 1.0)


def record(spec, cell, samples, stem, skipped):
    """The wrapper's run record."""
    budgets = [sample["effective_budget"] for sample in samples]
    # as the wrapper writes it: what plays a part in the method
    settings = {"budget": spec.budget or 256, "window": 8, **spec.knobs, "seed": spec.seed or 0}
    compression = CompressionConfig.fitting(spec.method, **settings).to_dict()
    measured = {
        "samples": len(samples),
        "samples_skipped": skipped,
        "effective_budget": sum(budgets) / len(budgets),
    }
    kept = [
        [measured["effective_budget"] * (1 + (layer - 2.5) / 10 + (head - 3.5) / 20) for head in range(HEADS)]
        for layer in range(LAYERS)
    ]
    versions = {"sparsemm_eval": "0.1.0", "torch": "2.15", "transformers": "5.23.0", "lmms_eval": "0.7.3"}
    return {
        "model_name": cell["model_name"],
        "compression": compression,
        "head_scores": "ab" * 32 if spec.method == "sparsemm" else None,
        "versions": versions,
        "commit": "0123456789abcdef",
        **{"dtype": "float32", "device_type": "cpu", "batch_size": 4, "processes": 1},
        "measured": measured,
        "kept_mean": kept,
        "skipped": {f"{spec.tasks[0]}/{index}": "too long" for index in range(skipped)},
        "path": f"/moved/away/stats/{stem}_sparsemm_run.json",
    }


def _json(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents), encoding="utf-8")


def _jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
