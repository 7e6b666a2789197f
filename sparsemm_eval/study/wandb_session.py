"""A process of its own that holds one W&B run: commands come in as JSON lines, each gets one line back.

A W&B run can hang on a lost network, and leaves a service process, environment variables and exit hooks in
the process that opened it. Here it can be waited for with a limit, and nothing of that reaches the runner.

python -m sparsemm_eval.study.wandb_session [check]
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemm_eval import compat

INTERRUPTED = 255

#: Metric -> the metric on its x-axis. None of them enters the summary, which holds results only.
AXES = {"progress/*": "progress/samples", "running_score/*": "document"}


class Session:
    """The commands; each method is one, its parameters are the command's keys."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(
        self,
        *,
        mode: str,
        project: str,
        entity: str | None,
        group: str,
        run_id: str,
        name: str,
        tags: list[str],
        config: dict[str, Any],
        folder: str,
    ) -> dict[str, Any]:
        """Start a run, or go on with it; its files go to ``folder``/wandb."""
        import wandb

        self._run = wandb.init(
            mode=mode,
            project=project,
            entity=entity,
            group=group,
            id=run_id,
            name=name,
            tags=tags,
            job_type="cell",
            config=config,
            allow_val_change=True,
            # An offline run has nobody to ask; it keeps the id and meets its earlier part when synced.
            resume="allow" if mode == "online" else None,
            dir=folder,
            settings=_quiet_settings(wandb),
        )
        for axis in AXES.values():
            self._run.define_metric(axis, summary="none")
        for metric, axis in AXES.items():
            self._run.define_metric(metric, step_metric=axis, summary="none")
        # Under `wandb agent` the run is the sweep's, whatever id was asked for.
        return {"id": self._run.id, "step": self._run.step, "folder": str(Path(self._run.dir).parent)}

    def log(self, *, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """One row of history."""
        self._run.log(values, step=step)
        return {}

    def results(self, *, path: str) -> dict[str, Any]:
        """Everything known at the end, from a JSON file with the keys read here."""
        payload = json.loads(Path(path).read_text(encoding="utf-8"))
        # The figures first: they are there even if a picture or a file cannot be sent.
        self._run.config.update(payload["config"], allow_val_change=True)
        self._run.summary.update(payload["summary"])
        for row in payload["history"]:
            self._run.log(row["values"], step=row["step"])
        media = {key: self._image(image) for key, image in payload["images"].items()}
        media |= {key: self._table(table) for key, table in payload["tables"].items()}
        if media:
            self._run.log(media, step=payload["media_step"])
        self._log_artifact(payload["artifact"])
        return {}

    def close(self, *, exit_code: int, summary: dict[str, Any]) -> dict[str, Any]:
        """End the run; online this waits until everything is uploaded."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=exit_code)
        self._run = None
        return {}

    def abandon(self) -> None:
        """The other side is gone: end the run as interrupted."""
        if self._run is not None:
            self._run.finish(exit_code=INTERRUPTED)

    def _image(self, path: str | None) -> Any:
        import wandb

        return None if path is None else wandb.Image(path)

    def _table(self, table: Mapping[str, Any]) -> Any:
        import wandb

        images = [table["columns"].index(name) for name in table["image_columns"]]
        rows = [list(row) for row in table["rows"]]
        for row in rows:
            for index in images:
                row[index] = self._image(row[index])
        return wandb.Table(columns=table["columns"], data=rows)

    def _log_artifact(self, description: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(
            description["name"], type=description["type"], metadata=description["metadata"]
        )
        for name, path in description["files"].items():
            artifact.add_file(path, name=name)
        self._run.log_artifact(artifact)


def _quiet_settings(wandb: Any) -> Any:
    """No console capture, no code, no git, no machine: a cell's own files say what was run."""
    return wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def check() -> int:
    """0 if there are credentials; never prompts, and asks no server (which `wandb.login` may do)."""
    import wandb

    try:
        return 0 if compat.has_wandb_credentials() else 1
    except wandb.errors.Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def serve() -> None:
    """Carry out commands until standard input ends."""
    # Whatever prints to standard output must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = getattr(session, command.pop("command"))(**command)
        except Exception as error:
            # Not swallowed: the other side raises it, and reports it.
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
    session.abandon()


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.exit(check())
    serve()
