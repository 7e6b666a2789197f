"""What the training of a reader consists of: stages as data, and one step of a stage."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from sparsemm_eval.pages.training.batches import IGNORE


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own optimizer.

    Attributes
    ----------
    name : str
    source : {"text", "cells", "image"}
        What the language model reads: character embeddings; nothing (the vision part is fitted to the
        embeddings alone); image features.
    parts : tuple of str
        Parameters that learn, of "text" and "vision".
    sizes : tuple of (rows, columns, batch size, weight)
        Pages of a step, drawn by weight.
    steps : int
        At most this many steps.
    rate : float
        Peak learning rate.
    until : float
        Stop early when the running accuracies of both tasks pass this; above 1 means never.
    decay : bool
        Lower the rate linearly to a fiftieth, else keep it after the warm-up.
    variety : float
        Probability of unusual wordings of the questions.
    choices : float
        Probability of a request to read the page being multiple-choice.
    hint : bool
        Ask for a value's first character at the end of its question too.
    recall : float
        Probability of rows that read the page listing its entries in random order instead.
    as_line : bool
        Count image features like text, one after the other, also where the model has rows and columns.
    """

    name: str
    source: str
    parts: tuple
    sizes: tuple
    steps: int
    rate: float = 3e-3
    until: float = 2.0
    decay: bool = False
    variety: float = 0.0
    choices: float = 0.0
    hint: bool = False
    recall: float = 0.0
    as_line: bool = False

    def factor(self, step):
        """Share of the peak learning rate at a step (0-based)."""
        warmup = min(1.0, (step + 1) / 20)
        return warmup * max(0.02, 1 - step / self.steps) if self.decay else warmup


# Reading is learned on pages of four rows first: the key after a line break stays at chance for long when
# there are many to choose from.
TINY = ((4, 16, 32, 1.0),)
SHORT = ((8, 16, 32, 1.0),)
MIXED = ((8, 16, 32, 0.15), (8, 24, 24, 0.2), (16, 16, 16, 0.4), (16, 24, 12, 0.25))
# Rows with two entries are the hardest to read in order.
WIDE = ((8, 16, 32, 0.1), (8, 24, 24, 0.3), (16, 16, 16, 0.2), (16, 24, 12, 0.4))
# Where small pages lag behind.
EVEN = ((8, 16, 32, 0.3), (8, 24, 24, 0.3), (16, 16, 16, 0.25), (16, 24, 12, 0.15))
BOTH = ("text", "vision")
_FOUNDATION = (
    Stage("text-tiny", "text", ("text",), TINY, steps=800, until=0.9),
    Stage("text-short", "text", ("text",), SHORT, steps=200, until=0.95),
    Stage("text-mixed", "text", ("text",), MIXED, steps=250, rate=2e-3, until=0.96),
    Stage("align", "cells", ("vision",), MIXED, steps=120),
    Stage("joint", "image", BOTH, MIXED, steps=350, rate=2e-3, decay=True, variety=0.2),
)
_GROUPED = (
    *_FOUNDATION,
    Stage("polish", "image", BOTH, WIDE, steps=240, rate=2e-3, decay=True, variety=0.2, choices=0.1),
    Stage("settle", "image", BOTH, MIXED, steps=220, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
)
#: The stages of every family. Those of grouped KV heads meet multiple choice earlier and so need fewer.
RECIPES = {
    "tiny-reader": (
        *_FOUNDATION,
        Stage("polish", "image", BOTH, MIXED, steps=240, rate=1.5e-3, decay=True, variety=0.2),
        Stage("polish-wide", "image", BOTH, WIDE, steps=220, rate=2e-3, decay=True, variety=0.1),
        Stage("wordings", "image", BOTH, MIXED, steps=100, rate=1e-3, decay=True, variety=0.3, choices=0.3),
        Stage("settle", "image", BOTH, WIDE, steps=150, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
        Stage("finish", "image", BOTH, MIXED, steps=220, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
    ),
    "tiny-reader-mistral": _GROUPED,
    "tiny-reader-qwen2vl": (
        # With rows and columns from the start the look-up of values stayed at chance. Pages as lines let it
        # begin; hints and recall let it begin earlier.
        Stage(
            "text-line", "text", ("text",), TINY, steps=700, until=0.9, hint=True, recall=0.3, as_line=True
        ),
        replace(_GROUPED[0], hint=True, recall=0.3),
        *_GROUPED[1:],
        Stage("finish", "image", BOTH, EVEN, steps=260, rate=2e-3, decay=True, variety=0.1, choices=0.1),
        Stage(
            "finish-slow", "image", BOTH, EVEN, steps=300, rate=1.5e-3, decay=True, variety=0.1, choices=0.1
        ),
    ),
}
ALIGNMENT_WEIGHT = 0.2


@dataclass(frozen=True)
class Scores:
    """Measurements on one training batch, before its update; teacher-forced.

    Attributes
    ----------
    loss : float
        Nats per answer token, without the alignment term.
    qa : float
        Share of values with every token right.
    ocr : float
        Share of page tokens right.
    alignment : float
        Share of printed cells whose feature is nearest to its character.
    """

    loss: float = float("nan")
    qa: float = float("nan")
    ocr: float = float("nan")
    alignment: float = float("nan")


def answer_loss(logits, batch):
    """Cross-entropy of the answers and the scores of both tasks.

    Parameters
    ----------
    logits : tensor, [answer tokens, vocabulary]
    batch : Batch

    Returns
    -------
    (loss, qa, ocr)
        A tensor and two floats. Both tasks weigh the same, although pages are longer than values.
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


def train_step(stage, reader, batch, optimizer, factor):
    """Run one step: forward, backward, update.

    Parameters
    ----------
    stage : Stage
    reader : TrainingModel
    batch : Batch
    optimizer : Optimizer
    factor : float
        Share of the peak learning rate.

    Returns
    -------
    Scores
    """
    if stage.source == "cells":
        loss, accuracy = reader.alignment(batch, reader.image_features(batch))
        loss.backward()
        optimizer.step(factor)
        return Scores(loss=loss.item(), alignment=accuracy)
    if stage.source == "text":
        features, extra, accuracy = reader.text_features(batch), 0.0, float("nan")
    else:
        features = reader.image_features(batch)
        extra, accuracy = reader.alignment(batch, features)
    loss, qa, ocr = answer_loss(reader.logits(batch, features, stage.as_line), batch)
    (loss + ALIGNMENT_WEIGHT * extra).backward()
    optimizer.step(factor)
    return Scores(loss.item(), qa, ocr, accuracy)
