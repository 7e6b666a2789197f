"""Train a tiny reader from scratch, in one run from one seed.

    python -m sparsemm_eval.pages.training.train --family tiny-reader --out DIR --seed 0

The language model learns to look up and to copy on character embeddings, small pages first; the vision part
learns to produce those embeddings; then both learn together on images.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForImageTextToText

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.pages.readers.families import FAMILIES, build, family_named, save
from sparsemm_eval.pages.readers.proof import prove
from sparsemm_eval.pages.training.attention import use_default_attention, use_training_attention
from sparsemm_eval.pages.training.batches import make_batch
from sparsemm_eval.pages.training.model import TrainingModel
from sparsemm_eval.pages.training.optimizer import Optimizer
from sparsemm_eval.pages.training.stages import RECIPES, Scores, train_step

RECORD = "training.json"
_SMOOTHING = 0.9


def _smooth(running, scores):
    """Running means of the scores; a measurement that is missing leaves its mean."""
    mixed = {}
    for name, new in asdict(scores).items():
        old = getattr(running, name)
        mixed[name] = old if new != new else new if old != old else _SMOOTHING * old + (1 - _SMOOTHING) * new
    return Scores(**mixed)


def run_stage(stage, reader, family, tokenizer, seed, first_step, report):
    """Run one stage.

    Parameters
    ----------
    stage : Stage
    reader : TrainingModel
    family : Family
    tokenizer : PreTrainedTokenizerFast
    seed, first_step : int
        Name the batches; no step number is used twice in a run.
    report : callable
        Called with (stage, step, Scores) every 20 steps and at the end.

    Returns
    -------
    (steps, Scores)
        Steps taken and running scores.
    """
    parts = reader.parts()
    learning = [named for part in stage.parts for named in parts[part]]
    frozen = [parameter for part in parts if part not in stage.parts for _, parameter in parts[part]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = Optimizer(learning, stage.rate)
    rng = np.random.default_rng((3, seed, first_step))
    weights = np.array([size[3] for size in stage.sizes])
    running = Scores()
    for step in range(stage.steps):
        rows, columns, batch_size, _ = stage.sizes[rng.choice(len(weights), p=weights / weights.sum())]
        batch = make_batch(
            family,
            tokenizer,
            seed,
            first_step + step,
            (rows, columns),
            batch_size,
            variety=stage.variety,
            choices=stage.choices,
            hint=stage.hint,
            recall=stage.recall,
        )
        running = _smooth(running, train_step(stage, reader, batch, optimizer, stage.factor(step)))
        done = min(running.qa, running.ocr) > stage.until and step >= 20
        if done or (step + 1) % 20 == 0 or step + 1 == stage.steps:
            report(stage, step + 1, running)
        if done:
            break
    for parameter in frozen:
        parameter.requires_grad_(True)
    return step + 1, running


def train(name, out, seed=0, stages=None, proof=(200, 64), log=print, resume=False):
    """Train a reader and write it with its training record.

    Weights and record are written after every stage. A stage starts with a new optimizer from the stored
    half-precision weights, so a run that resumes after a stage is the run that was never interrupted.

    Parameters
    ----------
    name : str
        A family of `families.FAMILIES`.
    out : path-like
        Folder for the checkpoint and `training.json`.
    seed : int
    stages : sequence of Stage, optional
        Default: the family's of `stages.RECIPES`.
    proof : (int, int)
        Held-out value questions and pages for the final score.
    log : callable
        Takes one line of text.
    resume : bool
        Go on after the last stage found in ``out``; with nothing there, start.

    Returns
    -------
    dict
        The training record as written.

    Raises
    ------
    ConfigError
        If ``out`` holds another training.
    """
    out = Path(out)
    family = family_named(name)
    stages = RECIPES[name] if stages is None else stages
    model, processor = build(name, seed)
    # Half precision doubles the speed; the optimizer keeps full-precision masters.
    model = model.to(torch.bfloat16)
    record = _found(out, name, seed, stages) if resume else None
    if record is None:
        record = _new_record(name, seed, model)
    else:
        stored = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.bfloat16)
        model.load_state_dict(stored.state_dict())
        log(f"resuming after stage {record['stages'][-1]['stage']}")
    model.train()
    use_training_attention(model)
    reader = TrainingModel(model, processor.tokenizer)
    for stage in stages[len(record["stages"]) :]:
        before, started = record["training_seconds"], time.perf_counter()

        def report(stage, step, scores, before=before, started=started):
            seconds = before + time.perf_counter() - started
            log(
                f"{seconds:7.1f} s  {stage.name:12s} {step:4d}  loss {scores.loss:.4f}  qa {scores.qa:.3f}  "
                f"ocr {scores.ocr:.4f}  align {scores.alignment:.4f}"
            )

        steps, scores = run_stage(stage, reader, family, processor.tokenizer, seed, record["steps"], report)
        seconds = round(before + time.perf_counter() - started, 1)
        numbers = {key: round(value, 5) for key, value in asdict(scores).items() if value == value}
        record["stages"].append({"stage": stage.name, "steps": steps, "seconds_at_end": seconds, **numbers})
        record |= {"steps": record["steps"] + steps, "training_seconds": seconds}
        save(model, processor, out)
        _write(out, record)
    use_default_attention(model)
    if sum(proof):
        # In single precision, as the tasks run it on a CPU.
        heldout = prove(model.float().eval(), processor, *proof)
        record["heldout"] = {key: round(value, 5) for key, value in asdict(heldout).items()}
        _write(out, record)
    log(f"{record['training_seconds']:7.1f} s  trained in {record['steps']} steps: {record['heldout']}")
    return record


def _new_record(name, seed, model):
    return {
        "family": name,
        "seed": seed,
        "steps": 0,
        "training_seconds": 0.0,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": [],
        "heldout": None,
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


def _found(out, name, seed, stages):
    """The record of a training that can go on, or None."""
    path = out / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    done = [stage["stage"] for stage in record["stages"]]
    if (record["family"], record["seed"]) != (name, seed) or done != [s.name for s in stages[: len(done)]]:
        raise ConfigError(
            "out", str(out), f"a folder without a training of its own, or one of {name} with seed {seed}"
        )
    return record


def _write(out, record):
    write_text_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")


def main(arguments=None):
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Train a tiny reader from scratch.")
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--out", required=True, help="folder for the checkpoint and its training record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on after the last stage found in --out")
    options = parser.parse_args(arguments)
    train(
        options.family,
        options.out,
        options.seed,
        log=lambda line: print(line, flush=True),
        resume=options.resume,
    )


if __name__ == "__main__":
    main()
