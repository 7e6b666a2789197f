"""Train a tiny reader from scratch, in one run from one seed.

    python -m sparsemm_eval.pages.train --family tiny-reader --out DIR --seed 0

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

from .families import FAMILIES, build, family_named, save
from .optimizer import Optimizer
from .prove import prove
from .stages import STAGES, Scores, train_step
from .training_attention import use_default_attention, use_training_attention
from .training_data import make_batch
from .training_model import TrainingModel

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
            family, tokenizer, seed, first_step + step, (rows, columns), batch_size, stage.variety
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


def train(name, out, seed=0, stages=STAGES, proof=(200, 64), log=print):
    """Train a reader and write it with its training record.

    Parameters
    ----------
    name : str
        A family of `families.FAMILIES`.
    out : path-like
        Folder for the checkpoint and `training.json`.
    seed : int
    stages : sequence of Stage
    proof : (int, int)
        Held-out value questions and pages for the final score.
    log : callable
        Takes one line of text.

    Returns
    -------
    dict
        The training record as written.
    """
    family = family_named(name)
    started, started_work = time.perf_counter(), time.process_time()
    model, processor = build(name, seed)
    # Half precision doubles the speed; the optimizer keeps full-precision masters.
    model = model.to(torch.bfloat16).train()
    use_training_attention(model)
    reader = TrainingModel(model, processor.tokenizer)
    total, history = 0, []

    def report(stage, step, scores):
        seconds = time.perf_counter() - started
        log(
            f"{seconds:7.1f} s  {stage.name:12s} {step:4d}  loss {scores.loss:.4f}  qa {scores.qa:.3f}  "
            f"ocr {scores.ocr:.4f}  align {scores.alignment:.4f}"
        )

    for stage in stages:
        steps, scores = run_stage(stage, reader, family, processor.tokenizer, seed, total, report)
        seconds = time.perf_counter() - started
        numbers = {key: round(value, 5) for key, value in asdict(scores).items() if value == value}
        history.append({"stage": stage.name, "steps": steps, "seconds_at_end": round(seconds, 1), **numbers})
        total += steps
    trained, worked = time.perf_counter() - started, time.process_time() - started_work
    model.eval()
    use_default_attention(model)
    Path(out).mkdir(parents=True, exist_ok=True)
    save(model, processor, out)
    heldout = prove(model, processor, *proof) if sum(proof) else None
    record = {
        "family": name,
        "seed": seed,
        "steps": total,
        "training_seconds": round(trained, 1),
        # Unlike wall time, this does not count waiting for other programs; it adds up all threads.
        "processor_seconds": round(worked, 1),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": history,
        "heldout": heldout and {key: round(value, 5) for key, value in asdict(heldout).items()},
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    (Path(out) / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    log(f"{trained:7.1f} s  trained in {total} steps; held-out {heldout}")
    return record


def main(arguments=None):
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Train a tiny reader from scratch.")
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--out", required=True, help="folder for the checkpoint and its training record")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    train(options.family, options.out, options.seed, log=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
