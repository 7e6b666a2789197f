"""A study's settings: what its file says, before anything is crossed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsemm_eval.study.yaml_lines import Document, Place


@dataclass(frozen=True)
class Model:
    """One model of a study.

    Attributes
    ----------
    label : str
        Its name in tables and figures.
    family : str
        ``llava`` or ``qwen2vl``: the first part of lmms-eval's model name.
    pretrained : str or None
        None: the family's default checkpoint.
    arguments : mapping
        Further model_args of this model; they go before the study's knobs.
    place : tuple
        In the file.
    """

    label: str
    family: str
    pretrained: str | None
    arguments: Mapping[str, Any]
    place: Place = field(default=(), compare=False)


@dataclass(frozen=True)
class Wandb:
    """Where runs are logged to."""

    mode: str = "disabled"
    project: str = "sparsemm-eval"
    entity: str | None = None


@dataclass(frozen=True)
class Study:
    """A study file's contents, checked one by one.

    Attributes
    ----------
    name : str
    output : pathlib.Path
        The study's folder.
    models : tuple of Model
    methods : tuple of str
    budgets : tuple of int
        Nominal entries per KV head.
    tasks : tuple of tuple of str
        Every inner tuple shares one process.
    seeds : tuple of int
    knobs : mapping
        model_arg -> values that are crossed.
    zip : tuple of tuple of str
        Names of knobs, or ``budget`` or ``seed``, whose values go together instead of being crossed.
    exclude : tuple of mapping
        Cells that agree with all entries of one of these are left out.
    cells : tuple of mapping
        Further cells: a method, and what is fixed for it of model, budget, seed, task and knobs.
    include_path : str or None
        Folder of the user's own tasks.
    limit : int or None
        Documents per task; None: all.
    batch_size, nproc, retries : int
    wandb : Wandb
    document : Document
        Where all this was read.
    task_places : mapping
        Where each task stands in it.
    """

    name: str
    output: Path
    models: tuple[Model, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    tasks: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    knobs: Mapping[str, tuple[Any, ...]]
    zip: tuple[tuple[str, ...], ...]
    exclude: tuple[Mapping[str, Any], ...]
    cells: tuple[Mapping[str, Any], ...]
    include_path: str | None
    limit: int | None
    batch_size: int
    nproc: int
    retries: int
    wandb: Wandb
    document: Document = field(compare=False, repr=False)
    task_places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)

    def model(self, label: str) -> Model:
        """The model of a label."""
        return next(model for model in self.models if model.label == label)

    def record(self) -> dict[str, Any]:
        """The settings as JSON types, for ``study.json``."""
        elsewhere = ("output", "models", "document", "task_places")
        names = [name for name in self.__dataclass_fields__ if name not in elsewhere]
        models = [
            {"name": model.label, "family": model.family, "pretrained": model.pretrained, **model.arguments}
            for model in self.models
        ]
        record = {name: getattr(self, name) for name in names}
        return {**record, "models": models, "wandb": asdict(self.wandb)}
