"""`sparsemm eval`: the lmms-eval command with our tasks on its path, failing when the evaluation failed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.files import check_target
from sparsemm_eval.lmms import arguments as lmms_arguments
from sparsemm_eval.lmms import results as lmms_results
from sparsemm_eval.lmms.tasks import check_needs
from sparsemm_eval.lmms.tied import tied


def evaluate(
    arguments: Sequence[str], processes: int = 1, environment: Mapping[str, str] | None = None
) -> list[lmms_results.ResultsFile]:
    """Run lmms-eval in a process of its own and make sure that it did what it was asked for.

    The arguments are lmms-eval's own and passed on unchanged; an output path and the include path are added.
    More than one of `processes` are data parallel, under torch.distributed; `environment` holds additions.
    Every evaluation of the command line has a results file; with ``stats_dir`` among the model_args, the run
    record is added to it under the key ``sparsemm``.

    Raises
    ------
    ConfigError
        For arguments that cannot work.
    UnsupportedError
        If a task needs a program that is not there.
    EvaluationError
        If lmms-eval failed, whatever its exit status, or left a task without scores.
    """
    runs = lmms_arguments.read(arguments)
    for warning in check_needs(task for run in runs for task in run.tasks):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    for run in runs:
        check_target("--output_path", run.output_path, folder=True)
    before = {run.output_path: lmms_results.snapshot(run.output_path) for run in runs}
    with tempfile.TemporaryDirectory(prefix="sparsemm-eval-") as scratch:
        completed = lmms_arguments.complete(arguments, Path(scratch))
        surroundings = {**os.environ, **_device_environment(arguments, processes), **(environment or {})}
        status = _run([*_launcher(processes), *completed], surroundings)
    if status:
        raise EvaluationError(f"lmms-eval ended with {_status_text(status)}; see the messages above")
    files = [lmms_results.find(run, before[run.output_path]) for run in runs]
    return [lmms_results.with_record(file, run) for file, run in zip(files, runs, strict=True)]


def command(
    context: typer.Context,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, data parallel.")] = 1,
) -> None:
    """Run lmms-eval with this package's tasks on its path; exit non-zero when the evaluation failed.

    All other arguments are lmms-eval's own and passed on unchanged, for instance: sparsemm eval --model
    llava_sparsemm --model_args pretrained=tiny-reader,budget=64,window=8 --tasks pages_qa. Results go to
    --output_path, by default ./runs.
    """
    for file in evaluate(context.args, nproc):
        print(f"results: {file.path}")


def _launcher(processes: int) -> list[str]:
    script = Path(sys.executable).with_name("lmms-eval")
    program = [str(script)] if script.is_file() else ["-m", "lmms_eval"]
    if processes == 1:
        return [sys.executable, *program]
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *distributed, *program]


def _device_environment(arguments: Sequence[str], processes: int) -> dict[str, str]:
    """Additions to the environment: Accelerate must be told when several processes run on a CPU."""
    if processes == 1:
        return {}
    import torch

    on_cpu = lmms_arguments.runs_on_cpu(arguments) or not torch.cuda.is_available()
    return {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}


def _run(line: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command with our standard streams; a signal that would end this process ends the command."""
    print(f"$ {shlex.join(line)}", flush=True)
    child = subprocess.Popen(tied(line), env=dict(environment))
    in_main_thread = threading.current_thread() is threading.main_thread()  # signals can be caught only there
    ending = (signal.SIGTERM, signal.SIGHUP) if in_main_thread else ()
    previous = {number: signal.signal(number, lambda *_: child.terminate()) for number in ending}
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The terminal has sent the interrupt to the child too; it may still be writing.
        child.wait()
        raise
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _status_text(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
