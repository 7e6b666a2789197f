"""Tables as text, Markdown, LaTeX (booktabs) and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study.tables import MISSING, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "ρ": r"$\rho$",
    "×": r"$\times$",
    MISSING: "--",
}


def write_tables(tables: Sequence[Table], format: str) -> str:
    """Tables one below the other: as text, markdown, latex (needs the booktabs package) or json.

    Raises
    ------
    ConfigError
        For another format.
    """
    if format == "json":
        documents = [{"title": table.title, "rows": table.records, "notes": table.notes} for table in tables]
        return json.dumps(documents, indent=2, ensure_ascii=False)
    if format not in _WRITERS:
        raise ConfigError("format", format, f"one of {', '.join((*_WRITERS, 'json'))}")
    return "\n".join(_WRITERS[format](table) for table in tables)


def markdown(table: Table) -> str:
    """A pipe table under a heading, notes as a list."""
    lines = [
        f"### {_pipe(table.title)}",
        "",
        _pipe_row(table.columns),
        _pipe_row(["---"] * len(table.columns)),
    ]
    lines += [_pipe_row(row) for row in _marked(table, _pipe, "**{}**")]
    return "\n".join([*lines, "", *(f"* {_pipe(note).removeprefix('* ')}" for note in table.notes), ""])


def latex(table: Table) -> str:
    """A table environment with booktabs rules."""
    alignment = "l" + "r" * (len(table.columns) - 1)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", _tex_row(table.columns), r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in _marked(table, _tex, r"\textbf{{{}}}")]
    lines += [r"\bottomrule", r"\end{tabular}"]
    # The notes stand below the rules in small type.
    lines += [rf"\par\smallskip{{\footnotesize {_tex(' '.join(table.notes))}}}", r"\end{table}"]
    return "\n".join([*lines, ""])


def text(table: Table) -> str:
    """For a terminal, as wide as it must be."""
    grid = TerminalTable(title=escape(table.title), box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(table.columns):
        grid.add_column(escape(column), justify="left" if index == 0 else "right", no_wrap=True)
    for row in _marked(table, escape, "▸ {}"):
        grid.add_row(*row)
    # Not the terminal's width: a column cut off is a number lost.
    console = Console(file=StringIO(), width=1000)
    console.print(grid)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join([*lines, *table.notes, ""])


_WRITERS: dict[str, Callable[[Table], str]] = {"text": text, "markdown": markdown, "latex": latex}


def _marked(table: Table, escaped: Callable[[str], str], mark: str) -> list[list[str]]:
    """Rows as a format writes them, with its mark on what is best."""
    return [
        [
            mark.format(escaped(cell)) if (row, column) in table.bold else escaped(cell)
            for column, cell in enumerate(cells)
        ]
        for row, cells in enumerate(table.rows)
    ]


def _pipe(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _pipe_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(_tex(cell) for cell in cells) + r" \\"
