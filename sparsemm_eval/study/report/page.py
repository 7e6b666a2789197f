"""Writing the page: results, tables, pictures and scripts put into one file."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm_eval.files import write_text_atomically

if TYPE_CHECKING:
    import pandas as pd

_ASSETS = "sparsemm_eval.study.report"


def write(folder: Path, out: Path | None = None) -> Path:
    """Write a study's page.

    Parameters
    ----------
    folder : path-like
        Of ``sparsemm study run``; it may be unfinished.
    out : path-like or None
        The file; None: ``report.html`` in the study folder.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    EvaluationError
        If the folder is no study.
    """
    # pandas and plotly take a second to import, which every command would pay for.
    import jinja2
    from plotly.offline import get_plotlyjs

    from sparsemm_eval.study.report.contents import contents
    from sparsemm_eval.study.results import collect

    folder = Path(folder)
    cells, samples = collect(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_ASSETS, "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = contents(folder, cells, samples)
    text = environment.get_template("report.html.j2").render(
        **values,
        data_json=_script_json(values["data"]),
        csv=_script_json(_csv(cells)),
        style=_asset("report.css"),
        scripts=[get_plotlyjs(), *map(_asset, ("figures.js", "report.js"))],
    )
    path = folder / "report.html" if out is None else Path(out)
    write_text_atomically(path, text)
    return path


def _csv(cells: pd.DataFrame) -> str:
    return cells.to_csv(index=False)


def _asset(name: str) -> str:
    return resources.files(_ASSETS).joinpath("assets", name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
