"""`sparsemm study dashboard`: a W&B workspace that compares a study's cells, saved online or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.files import write_json_atomically
from sparsemm_eval.study.commands import Folder
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.wandb_runs import has_credentials, without_secrets

FILE = "dashboard.json"
MAX_RUNS = 1000
#: Title of a panel, figures on its x- and y-axis, whether the x-axis is logarithmic.
SCATTERED = (
    ("score against effective budget", "effective_budget", "score", True),
    ("score against KV bytes per sample", "kv_bytes_per_sample", "score", True),
    ("score against prefill seconds per sample", "prefill_seconds_per_sample", "score", False),
    ("score against decode seconds per token", "decode_seconds_per_token", "score", False),
    ("score against peak KV bytes of a call", "kv_bytes_peak_per_call", "score", True),
    ("identical to FullKV against effective budget", "effective_budget", "agreement", True),
)
FIGURES = ("score", "effective_budget", "kv_bytes_per_sample", "decode_seconds_per_token", "agreement")
_SIZE, _PER_ROW = 8, 3


def command(
    folder: Folder,
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
    """Build a W&B workspace that compares the study's configurations.

    Examples: sparsemm study dashboard runs/tiny --save, sparsemm study dashboard runs/tiny --out board.json
    """
    mode = StudyFolder(folder).settings()["settings"]["wandb"]["mode"]
    board = workspace(folder, entity, project)
    wanted = mode == "online" if save is None else save
    if wanted:
        print(save_online(board))
    if out is not None or not wanted:
        path = out or folder / FILE
        write_json_atomically(path, to_json(board))
        print(path)


def to_json(board: Any) -> dict[str, Any]:
    """The workspace as W&B would store it: entity, project, name and the view's ``spec``."""
    view = compat.workspace_view(board)
    return {
        "entity": view.entity,
        "project": view.project,
        "displayName": view.display_name,
        "type": "project-view",
        "spec": view.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def save_online(board: Any) -> str:
    """Save the workspace and return its address.

    Raises
    ------
    ConfigError
        Without credentials.
    UnsupportedError
        If W&B refuses.
    """
    if not has_credentials():
        raise ConfigError(
            "--save", "", "W&B credentials (run `wandb login`), or --no-save to write the workspace's JSON"
        )
    try:
        import wandb

        board.entity = board.entity or wandb.Api().default_entity
        return board.save().url
    except Exception as error:
        # Whatever the server or the network says, in one line, and what can be done without it.
        raise UnsupportedError(
            f"W&B did not save the workspace ({without_secrets(str(error))}): use --no-save to write its JSON"
        ) from error


def workspace(folder: Path, entity: str | None = None, project: str | None = None) -> Any:
    """The workspace of a study: the comparison, a section per task, and pictures.

    Runs are grouped by model, method, crossed knobs and budget, so that a mean is over seeds only. Entity and
    project may be others than the study's.

    Raises
    ------
    ConfigError
        If the folder is no study.
    UnsupportedError
        If wandb-workspaces is not installed.
    """
    # The methods' records import torch, which `--help` shall not.
    from sparsemm_eval.study.cell_files import read_study

    record = StudyFolder(folder).settings()
    study, settings = record["name"], record["settings"]
    tasks = dict.fromkeys(task for files in read_study(folder) for task in files.tasks)
    knobs = [name for name, values in settings["knobs"].items() if len(values) > 1]
    ws, wr = _modules()
    keys = ("model", "method", *knobs, "budget")
    media = [
        wr.MediaBrowser(title="entries kept per head", media_keys=["head_budgets"], num_columns=3),
        wr.WeavePanelSummaryTable(table_name="samples_table"),
        wr.RunComparer(diff_only="split"),
    ]
    comparison = [wr.WeavePanelSummaryTable(table_name="comparison")]
    return ws.Workspace(
        entity=entity or settings["wandb"]["entity"] or "",
        project=project or settings["wandb"]["project"],
        name=f"{study}: KV-cache compression",
        sections=[
            _section(ws, wr, "comparison of the study", comparison, is_open=True),
            *(_section(ws, wr, task, _panels(wr, task), is_open=True) for task in tasks),
            _section(ws, wr, "heads, samples, settings", media),
        ],
        settings=ws.WorkspaceSettings(max_runs=MAX_RUNS, sort_panels_alphabetically=False),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Config("study") == study],
            groupby=[ws.Config(name) for name in keys],
            order=[ws.Ordering(ws.Config(name), ascending=True) for name in keys],
            pinned_columns=[
                "run:displayName",
                *(f"config:{name}" for name in (*keys, "seed", "task")),
                *(f"summary:{name}" for name in FIGURES),
            ],
        ),
    )


def _panels(wr: Any, task: str) -> list[Any]:
    found = []
    for title, *figures, log in SCATTERED:
        x, y = (wr.SummaryMetric(f"{task}/{figure}") for figure in figures)
        found.append(wr.ScatterPlot(title=f"{task}: {title}", x=x, y=y, log_x=log))
    bars = {"metrics": [f"{task}/score"], "groupby": wr.Config("configuration")}
    found.append(wr.BarPlot(title=f"{task}: score by configuration", **bars))
    lines = {"x": "document", "y": [f"running_score/{task}"]}
    return [*found, wr.LinePlot(title=f"{task}: score over documents", **lines)]


def _section(ws: Any, wr: Any, name: str, panels: list[Any], is_open: bool = False) -> Any:
    for place, panel in enumerate(panels):
        row, column = divmod(place, _PER_ROW)
        panel.layout = wr.Layout(x=column * _SIZE, y=row * _SIZE, w=_SIZE, h=_SIZE)
    layout = ws.SectionLayoutSettings(columns=_PER_ROW, rows=-(-len(panels) // _PER_ROW))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def _modules() -> tuple[Any, Any]:
    """The modules of workspaces and panels; raises UnsupportedError without the extra."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UnsupportedError(
            "a dashboard needs the package wandb-workspaces: pip install 'sparsemm-eval[dashboard]'"
        ) from error
    return ws, wr
