"""`sparsemm study dashboard`: a W&B workspace that compares a study's cells, saved online or as JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError, EvaluationError, UnsupportedError
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.study.dashboard_workspace import DashboardPlan, build, workspaces

FILE = "dashboard.json"


def dashboard_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")],
    entity: Annotated[str | None, typer.Option(help="W&B user or team; the study's by default.")] = None,
    project: Annotated[str | None, typer.Option(help="W&B project; the study's by default.")] = None,
    save: Annotated[
        bool | None,
        typer.Option(
            "--save/--no-save", help="Save it online; by default if the study was logged with mode: online."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Where to write its JSON; DIR/{FILE} by default when it is not saved online."),
    ] = None,
) -> None:
    """Build a W&B workspace that compares the study's methods.

    Examples: sparsemm study dashboard runs/tiny --save, sparsemm study dashboard runs/tiny --out board.json
    """
    plan = read_plan(folder, entity, project)
    wanted = plan.mode == "online" if save is None else save
    if wanted:
        print(save_online(plan))
    if out is not None or not wanted:
        path = out or folder / FILE
        write_text_atomically(path, json.dumps(to_json(plan), indent=2) + "\n")
        print(path)


def read_plan(folder: Path, entity: str | None = None, project: str | None = None) -> DashboardPlan:
    """What to show of a study.

    Parameters
    ----------
    folder : pathlib.Path
        With ``study.json``; tasks are those of ``results.csv`` where it is there, since a group's members are
        known by then, and those of the cells otherwise.
    entity, project : str, optional
        Instead of the study's.

    Raises
    ------
    EvaluationError
        If the folder is no study.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise EvaluationError(
            f"{folder} is no study folder: it has no study.json (`sparsemm study run` makes it)"
        )
    study = json.loads(path.read_text(encoding="utf-8"))
    wandb = study.get("settings", {}).get("wandb") or {}
    return DashboardPlan(
        study=study["name"],
        entity=entity or wandb.get("entity") or "",
        project=project or wandb.get("project") or "sparsemm-eval",
        tasks=_tasks(folder, study["cells"]),
        mode=wandb.get("mode", "disabled"),
    )


def to_json(plan: DashboardPlan) -> dict[str, Any]:
    """The workspace as W&B would store it: entity, project, name and the view's ``spec``."""
    view = compat.workspace_view(build(plan))
    return {
        "entity": view.entity,
        "project": view.project,
        "displayName": view.display_name,
        "type": "project-view",
        "spec": view.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def save_online(plan: DashboardPlan) -> str:
    """Save the workspace and return its address.

    Raises
    ------
    ConfigError
        Without credentials.
    UnsupportedError
        If wandb-workspaces is not installed, or W&B refuses.
    """
    from sparsemm_eval.study.tracking_process import has_credentials, without_secrets

    workspaces()
    if not has_credentials():
        raise ConfigError(
            "--save", "", "W&B credentials (run `wandb login`), or --no-save to write the workspace's JSON"
        )
    try:
        return build(_with_entity(plan)).save().url
    except Exception as error:
        # Whatever the server or the network says, in one line, and what can be done without it.
        raise UnsupportedError(
            f"W&B did not save the workspace ({without_secrets(str(error))}): use --no-save to write its JSON"
        ) from error


def _with_entity(plan: DashboardPlan) -> DashboardPlan:
    import wandb

    return plan if plan.entity else replace(plan, entity=wandb.Api().default_entity)


def _tasks(folder: Path, cells: list[str]) -> tuple[str, ...]:
    results = folder / "results.csv"
    if results.is_file():
        with results.open(encoding="utf-8", newline="") as file:
            found = [row["task"] for row in csv.DictReader(file) if row.get("task")]
        if found:
            return tuple(dict.fromkeys(found))
    paths = [folder / "cells" / name / "cell.json" for name in cells]
    named = [json.loads(path.read_text(encoding="utf-8"))["tasks"] for path in paths if path.is_file()]
    return tuple(dict.fromkeys(task for tasks in named for task in tasks))
