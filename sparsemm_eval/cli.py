"""The `sparsemm` command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sparsemm_eval.bench import commands as bench
from sparsemm_eval.errors import in_one_line
from sparsemm_eval.heads import commands as heads
from sparsemm_eval.lmms import demo, evaluate, tasks
from sparsemm_eval.pages import commands as pages
from sparsemm_eval.study import commands as study
from sparsemm_eval.study import masking
from sparsemm_eval.study.report import report_command
from sparsemm_eval.tracking import dashboard

app = typer.Typer(
    help="Evaluation of KV-cache compression for multimodal LLMs, on top of lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.command)
app.command("eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    evaluate.command
)
app.command("tasks")(tasks.command)
heads.app.command("mask", epilog=masking.EPILOG)(masking.mask)
app.add_typer(heads.app, name="heads")
app.add_typer(pages.app, name="pages")
app.add_typer(pages.readers, name="readers")
app.add_typer(bench.app, name="bench")
study.app.command("dashboard")(dashboard.command)
app.add_typer(study.app, name="study")
app.command("report")(report_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparsemm_eval import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Evaluation of KV-cache compression for multimodal LLMs, on top of lmms-eval."""


def main() -> None:
    """Run the command; whatever goes wrong becomes one line and an exit code, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    with in_one_line():
        app()


if __name__ == "__main__":
    main()
