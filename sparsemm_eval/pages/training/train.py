"""Train a tiny reader from scratch, in one run from one seed: stage after stage, with a record of each.

The language model learns to look up and to copy on character embeddings, small pages first; the vision part
learns to produce those embeddings; then both learn together on images.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedModel

from sparsemm_eval.checks import Natural, checked
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.reading import prove
from sparsemm_eval.pages.readers.recipe import Stage
from sparsemm_eval.pages.readers.registry import reader_named
from sparsemm_eval.pages.training.attention import use_default_attention, use_training_attention
from sparsemm_eval.pages.training.model import TrainingModel
from sparsemm_eval.pages.training.steps import run_stage

RECORD = "training.json"


def train(
    name: str,
    out: str | Path,
    seed: int = 0,
    stages: Sequence[Stage] | None = None,
    proof: tuple[int, int] = (200, 64),
    log: Callable[[str], None] = print,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a reader, write it with its training record and return the record.

    Weights and record are written after every stage. A stage starts with a new optimizer from the stored
    half-precision weights, so a run that resumes after a stage is the run that was never interrupted.

    Parameters
    ----------
    name : str
        A reader of `registry.READERS`.
    out : path-like
        Folder for the checkpoint and the record, `training.json`.
    seed : int
        Of the first weights and of all pages.
    stages : sequence of Stage, optional
        The reader's recipe by default.
    proof : (int, int)
        Held-out value questions and pages for the final score.
    log : callable
        Takes one line of text.
    resume : bool
        Go on after the last stage found in ``out``; with nothing there, start.

    Raises
    ------
    ConfigError
        If there is no such reader, or ``out`` holds another training.
    """
    out, reader = Path(out), reader_named(name)
    checked(Natural, "seed", seed)
    stages = reader.recipe if stages is None else stages
    model, processor = reader.build(seed)
    if reader.learning:
        reader.learning.prepare(model)
    else:
        # Half precision doubles the speed of small models; the optimizer keeps full-precision masters.
        model = model.to(torch.bfloat16)
        use_training_attention(model)
    record = _found(out, name, seed, stages) if resume else None
    if record is None:
        record = _new_record(name, seed, model)
    else:
        if reader.learning:
            reader.learning.restore(model, out)
        else:
            stored = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.bfloat16)
            model.load_state_dict(stored.state_dict())
        log(f"resuming after stage {record['stages'][-1]['stage']}")
    model.train()
    learner = TrainingModel(model, processor.tokenizer)
    for stage in stages[len(record["stages"]) :]:
        before, started = record["training_seconds"], time.perf_counter()
        for steps, scores in run_stage(stage, learner, reader, processor.tokenizer, seed, record["steps"]):
            seconds = before + time.perf_counter() - started
            shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            log(f"{seconds:7.1f} s  {stage.name:12s} {steps:4d}  {shown}")
        seconds = round(seconds, 1)
        numbers = {key: round(value, 5) for key, value in scores.items()}
        record["stages"].append({"stage": stage.name, "steps": steps, "seconds_at_end": seconds, **numbers})
        record |= {"steps": record["steps"] + steps, "training_seconds": seconds}
        if reader.learning:
            reader.learning.save(model, processor, out)
            reader.learning.restore(model, out)  # what is stored is rounded
        else:
            save(model, processor, out)
        _write(out, record)
    if not reader.learning:
        use_default_attention(model)
    if sum(proof):
        # In single precision, as the tasks run it on a CPU.
        heldout = prove(model.float().eval(), processor, *proof)
        record["heldout"] = {key: round(value, 5) for key, value in heldout.items()}
        _write(out, record)
    log(f"{record['training_seconds']:7.1f} s  trained in {record['steps']} steps: {record['heldout']}")
    return record


def _new_record(name: str, seed: int, model: PreTrainedModel) -> dict[str, Any]:
    return {
        # The reader's name; every record that exists calls it so, and the file counts into a fingerprint.
        "family": name,
        "seed": seed,
        "steps": 0,
        "training_seconds": 0.0,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": [],
        "heldout": None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


def _found(out: Path, name: str, seed: int, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """The record of a training that can go on, or None where there is none."""
    path = out / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        done = [stage["stage"] for stage in record["stages"]]
        ours = (record["family"], record["seed"]) == (name, seed)
    except (ValueError, KeyError, TypeError):
        ours, done = False, []
    if not ours or done != [stage.name for stage in stages[: len(done)]]:
        raise ConfigError(
            "out", str(out), f"a folder without {RECORD}, or with that of {name} trained from seed {seed}"
        )
    return record


def _write(out: Path, record: dict[str, Any]) -> None:
    write_text_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")
