"""``python -m sparsemm_eval.evidence``: the paper's evidence on a shipped reader, a document with figures."""

from __future__ import annotations

import argparse

from sparsemm_eval.errors import ConfigError, in_one_line
from sparsemm_eval.evidence.measure import EFFORTS, measure
from sparsemm_eval.evidence.text import document
from sparsemm_eval.files import check_target, users_path, write_text_atomically


def main(arguments: list[str] | None = None) -> None:
    """Measure, draw the figures and write the document; measurements in the work folder are used again."""
    parser = argparse.ArgumentParser(prog="python -m sparsemm_eval.evidence", description=__doc__)
    beside = "Markdown file; figures go to figures/ beside it."
    parser.add_argument("--out", type=users_path, required=True, help=beside)
    parser.add_argument("--reader", default="tiny-reader", help="A shipped reader with shipped head scores.")
    work = {"type": users_path, "default": "runs/heads"}
    parser.add_argument("--work", **work, help="Folder of measurements.")
    done = {"type": users_path, "default": "runs/evidence"}
    parser.add_argument("--study", **done, help="Folder of the study `evidence`, which has been run.")
    takes = "full: about five minutes of one core; half: two; trial: figures that mean nothing."
    parser.add_argument("--effort", choices=sorted(EFFORTS), default="full", help=takes)
    published = {"action": "append", "default": [], "metavar": "NAME=FOLDER"}
    parser.add_argument("--anchor", **published, help="Published data that is here.")
    given = parser.parse_args(arguments)
    if not all("=" in entry for entry in given.anchor):
        raise ConfigError("--anchor", given.anchor, "NAME=FOLDER")
    check_target("--out", given.out)
    check_target("--work", given.work, folder=True)
    stored = dict(entry.split("=", 1) for entry in given.anchor)
    figures = "figures" if given.reader == parser.get_default("reader") else f"figures/{given.reader}"
    found = measure(given.reader, given.effort, given.work, stored, given.out.parent / figures)
    shown = {"out": f"docs/{given.out.name}", "reader": given.reader, "effort": given.effort}
    shown["study"] = f"runs/{given.study.name}"
    differ = {name: value for name, value in shown.items() if value != str(parser.get_default(name))}
    option = "".join(f" --{name} {value}" for name, value in differ.items())
    write_text_atomically(given.out, document(found, given.study, figures, option))
    print(f"written to {given.out}")


if __name__ == "__main__":
    with in_one_line():
        main()
