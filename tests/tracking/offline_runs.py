"""Reads W&B's offline run files back, with W&B's own reader and message types."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class OfflineRun:
    """What one session of a run left on disk; summary without W&B's own keys."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    metrics: dict = field(default_factory=dict)
    artifacts: dict = field(default_factory=dict)
    exit_code: int | None = None

    def rows(self, prefix):
        """Rows of history that have a key beginning so."""
        return [row for row in self.history if any(key.startswith(prefix) for key in row)]


def read_sessions(study):
    """All sessions below a study's folder, in the order of their start and name."""
    return [_read(path) for path in sorted((study / "wandb").glob("offline-run-*/run-*.wandb"))]


def _read(path):
    from wandb.proto import wandb_internal_pb2 as pb
    from wandb.sdk.internal.datastore import DataStore

    run = OfflineRun(path.parent)
    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = pb.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind in _TAKERS:
            _TAKERS[kind](run, getattr(record, kind))
    store.close()
    run.summary = {key: value for key, value in run.summary.items() if not key.startswith("_")}
    return run


def _take_run(run, message):
    run.id, run.name, run.group = message.run_id, message.display_name, message.run_group
    run.job_type, run.project, run.tags = message.job_type, message.project, list(message.tags)
    _take_config(run, message.config)


def _take_config(run, message):
    _update(run.config, message.update)
    run.config.pop("_wandb", None)


def _take_history(run, message):
    row = {}
    _update(row, message.item)
    run.history.append(row)


def _take_metric(run, message):
    run.metrics[message.name or message.glob_name] = message.step_metric


def _take_artifact(run, message):
    paths = {entry.path: Path(entry.local_path) for entry in message.manifest.contents}
    run.artifacts[message.type, message.name] = paths


def _update(target, items):
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        place = target
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)


_TAKERS = {
    "run": _take_run,
    "config": _take_config,
    "summary": lambda run, message: _update(run.summary, message.update),
    "history": _take_history,
    "metric": _take_metric,
    "artifact": _take_artifact,
    "exit": lambda run, message: setattr(run, "exit_code", message.exit_code),
}
