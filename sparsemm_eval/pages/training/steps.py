"""How a stage is run: a loss, an optimizer, a step, and steps until the stage ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from sparsemm_eval.pages.readers.reader import Reader
from sparsemm_eval.pages.readers.recipe import Stage
from sparsemm_eval.pages.training.batches import IGNORE, Batch, make_batch
from sparsemm_eval.pages.training.model import TrainingModel

# Embeddings, heads and patch projections map between unlike spaces; Muon is meant for hidden matrices.
# Factors of an adapter are learned as in the LoRA paper.
_NOT_HIDDEN = ("embed", "lm_head", "newline", "lora_")
_LARGEST_NORM = 1.0  # of the gradient over all parameters


class Optimizer:
    """Updates the given parameters only, with one peak learning rate.

    Build a new one for every stage: momentum of parameters that were frozen meanwhile would be stale.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], rate: float) -> None:
        self.rate = rate
        self.parameters = [parameter for _, parameter in named]
        self.masters = [parameter.detach().clone().float() for parameter in self.parameters]
        hidden, rest = [], []
        for (name, _), master in zip(named, self.masters, strict=True):
            matrix = master.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)
            (hidden if matrix else rest).append(master)
        self.optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            muon = torch.optim.Muon(hidden, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        if rest:
            self.optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Apply the gradients of the parameters, with the learning rate times `factor`, and clear them."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, _LARGEST_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient is not finite; lower the learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)


ALIGNMENT_WEIGHT = 0.2
_SMOOTHING = 0.9


def followed_by(mean: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    """Running means of scores after another batch; a score that it lacks leaves its mean."""
    mixed = dict(mean)
    for name, value in new.items():
        mixed[name] = _SMOOTHING * mixed[name] + (1 - _SMOOTHING) * value if name in mixed else value
    return mixed


def answer_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float, float]:
    """Cross-entropy of the answers and the scores of both tasks, from logits [answer tokens, vocabulary].

    Returns
    -------
    (loss, qa, ocr)
        Both tasks weigh the same in the loss, although pages are longer than values.
    """
    chosen = batch.targets != IGNORE
    targets, answers = batch.targets[chosen], batch.answers[chosen]
    reading = batch.reading[:, None].expand_as(batch.targets)[chosen]
    each = F.cross_entropy(logits.float(), targets, reduction="none")
    right = logits.argmax(-1) == targets
    numbers, place = answers[~reading].unique(return_inverse=True)
    wrong = torch.zeros(len(numbers)).index_add_(0, place, (~right[~reading]).float())
    loss = (each[reading].mean() + each[~reading].mean()) / 2
    return loss, (wrong == 0).float().mean().item(), right[reading].float().mean().item()


def train_step(
    stage: Stage, learner: TrainingModel, batch: Batch, optimizer: Optimizer, factor: float
) -> dict[str, float]:
    """Run one step, forward, backward and update, at the share `factor` of the peak learning rate.

    Returns
    -------
    dict
        What was measured on the batch before the update, teacher-forced: `loss`, nats per answer token
        without the alignment term; `qa` and `ocr`, shares of values with every token right, and of page
        tokens right; `alignment`, share of printed cells whose feature is nearest to its character.
    """
    if stage.source == "cells":
        loss, accuracy = learner.alignment(batch, learner.image_features(batch))
        loss.backward()
        optimizer.step(factor)
        return {"loss": loss.item(), "alignment": accuracy}
    found: dict[str, float] = {}
    if stage.source == "text":
        features, extra = learner.text_features(batch), 0.0
    else:
        features = learner.image_features(batch)
        extra, found["alignment"] = learner.alignment(batch, features)
    loss, qa, ocr = answer_loss(learner.logits(batch, features, stage.as_line), batch)
    (loss + ALIGNMENT_WEIGHT * extra).backward()
    optimizer.step(factor)
    return {"loss": loss.item(), "qa": qa, "ocr": ocr, **found}


def run_stage(
    stage: Stage,
    learner: TrainingModel,
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    first_step: int,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Run one stage.

    `seed` and `first_step` name the batches; no step number is used twice in a run.

    Yields
    ------
    (steps, scores)
        Steps taken so far and running means of the scores: every 20 steps and at the end.
    """
    parts = learner.parts()
    learning = [named for part in stage.parts for named in parts[part]]
    frozen = [parameter for part in parts if part not in stage.parts for _, parameter in parts[part]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = Optimizer(learning, stage.rate)
    rng = np.random.default_rng((3, seed, first_step))
    weights = np.array([size[3] for size in stage.sizes])
    running: dict[str, float] = {}
    for step in range(stage.steps):
        rows, columns, batch_size, _ = stage.sizes[rng.choice(len(weights), p=weights / weights.sum())]
        batch = make_batch(reader, tokenizer, stage, seed, first_step + step, (rows, columns), batch_size)
        running = followed_by(running, train_step(stage, learner, batch, optimizer, stage.factor(step)))
        learned = min(running.get("qa", 0.0), running.get("ocr", 0.0)) > stage.until and step >= 20
        last = learned or step + 1 == stage.steps
        if last or (step + 1) % 20 == 0:
            yield step + 1, running
        if last:
            break
    for parameter in frozen:
        parameter.requires_grad_(True)
