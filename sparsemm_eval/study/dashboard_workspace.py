"""The W&B workspace that compares a study's methods: its sections, panels, filters and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsemm_eval.errors import UnsupportedError

#: Title of a panel, figure on its x-axis, whether that axis is logarithmic.
ACCURACY_AGAINST = (
    ("score against effective budget", "effective_budget", True),
    ("score against KV bytes", "kv_bytes", True),
    ("score against prefill seconds", "prefill_seconds", False),
    ("score against decode seconds per token", "decode_seconds", False),
    ("score against peak KV bytes", "kv_bytes_peak", True),
)
PROGRESS = ("effective_budget", "kv_bytes", "samples_per_second")
COLUMNS = (
    "config:model",
    "config:method",
    "config:budget",
    "config:kernel_size",
    "config:ratio",
    "config:seed",
    "config:task",
    "summary:score",
    "summary:effective_budget",
    "summary:kv_bytes",
    "summary:decode_seconds",
    "summary:agreement",
)
_PANEL_WIDTH, _PANEL_HEIGHT, _PANELS_PER_ROW = 8, 8, 3


@dataclass(frozen=True)
class DashboardPlan:
    """What a workspace shows.

    Attributes
    ----------
    study : str
        Runs of this study are shown.
    entity : str
        User or team; may be empty where nothing is saved online.
    project : str
    tasks : tuple of str
        One section each.
    mode : str
        The study's W&B mode.
    """

    study: str
    entity: str
    project: str
    tasks: tuple[str, ...]
    mode: str


def build(plan: DashboardPlan) -> Any:
    """The workspace: a section per task, then agreement, progress and media.

    Raises
    ------
    UnsupportedError
        If wandb-workspaces is not installed.
    """
    ws, wr = workspaces()
    summary = wr.SummaryMetric
    sections = [_task_section(ws, wr, task) for task in plan.tasks]
    agreement = [
        wr.ScatterPlot(
            title=f"{task}: {title}",
            x=summary(f"{task}/effective_budget"),
            y=summary(f"{task}/{figure}"),
            log_x=True,
        )
        for task in plan.tasks
        for title, figure in (
            ("answers identical to FullKV's", "agreement"),
            ("edit similarity to FullKV", "agreement_similarity"),
        )
    ]
    progress = [
        wr.LinePlot(title=figure.replace("_", " "), x="progress/samples", y=[f"progress/{figure}"])
        for figure in PROGRESS
    ]
    progress += [
        wr.LinePlot(title=f"{task}: score so far", x="progress/samples", y=[f"progress/score/{task}"])
        for task in plan.tasks
    ]
    media = [
        wr.MediaBrowser(title="entries kept per head", media_keys=["head_budgets"], num_columns=3),
        wr.WeavePanelSummaryTable(table_name="samples_table"),
        wr.RunComparer(diff_only="split"),
    ]
    return ws.Workspace(
        entity=plan.entity,
        project=plan.project,
        name=f"{plan.study}: KV-cache compression",
        sections=[
            *sections,
            _section(ws, wr, "agreement with FullKV", agreement),
            _section(ws, wr, "while running", progress),
            _section(ws, wr, "heads, samples, settings", media),
        ],
        settings=ws.WorkspaceSettings(max_runs=100, sort_panels_alphabetically=False),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Config("study") == plan.study],
            groupby=[ws.Config("method"), ws.Config("budget")],
            order=[
                ws.Ordering(ws.Config("method"), ascending=True),
                ws.Ordering(ws.Config("budget"), ascending=True),
            ],
            pinned_columns=["run:displayName", *COLUMNS],
        ),
    )


def workspaces() -> tuple[Any, Any]:
    """The modules of workspaces and panels; raises UnsupportedError without the extra."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UnsupportedError(
            "a dashboard needs the package wandb-workspaces: pip install 'sparsemm-eval[dashboard]'"
        ) from error
    return ws, wr


def _task_section(ws: Any, wr: Any, task: str) -> Any:
    score = wr.SummaryMetric(f"{task}/score")
    panels = [
        wr.ScatterPlot(title=f"{task}: {title}", x=wr.SummaryMetric(f"{task}/{figure}"), y=score, log_x=log)
        for title, figure, log in ACCURACY_AGAINST
    ]
    panels.append(
        wr.BarPlot(title=f"{task}: score by method", metrics=[f"{task}/score"], groupby=wr.Config("method"))
    )
    panels.append(
        wr.LinePlot(title=f"{task}: score over documents", x="document", y=[f"running_score/{task}"])
    )
    return _section(ws, wr, task, panels, is_open=True)


def _section(ws: Any, wr: Any, name: str, panels: list[Any], is_open: bool = False) -> Any:
    for place, panel in enumerate(panels):
        row, column = divmod(place, _PANELS_PER_ROW)
        panel.layout = wr.Layout(
            x=column * _PANEL_WIDTH, y=row * _PANEL_HEIGHT, w=_PANEL_WIDTH, h=_PANEL_HEIGHT
        )
    rows = -(-len(panels) // _PANELS_PER_ROW)
    layout = ws.SectionLayoutSettings(columns=_PANELS_PER_ROW, rows=max(1, rows))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)
