"""The page of a study: results, figures and documents in one HTML file without scripts or requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.study.json_values import plain

_PACKAGE = "sparsemm_eval.study.report"


def write(folders: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one or several studies, finished or not; returns its path.

    That is ``report.html`` in the first folder, where no other is given.

    Raises
    ------
    EvaluationError
        If a folder is no study.
    """
    # pandas takes a second to import, which every command would pay for.
    import jinja2

    places = [Path(folders)] if isinstance(folders, (str, Path)) else list(map(Path, folders))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE, "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files(_PACKAGE).joinpath("assets", "report.css").read_text(encoding="utf-8")
    text = environment.get_template("report.html.j2").render(**_contents(places), style=style)
    path = places[0] / "report.html" if out is None else Path(out).expanduser()
    write_text_atomically(path, text)
    return path


def _contents(places: list[Path]) -> dict[str, Any]:
    """Everything the template names."""
    from sparsemm_eval import __version__
    from sparsemm_eval.study.cell_files import read_study
    from sparsemm_eval.study.columns import VERSIONS
    from sparsemm_eval.study.pictures import pictures
    from sparsemm_eval.study.report.disagreements import worst
    from sparsemm_eval.study.report.images import thumbnails
    from sparsemm_eval.study.results import collect, csv
    from sparsemm_eval.study.tables import KINDS, Study, of_kind

    cells, samples = collect(places)
    study = Study.of(cells, samples)
    files = [one for place in places for one in read_study(place)]
    disagreements = worst(study.configurations, samples)
    images, without = thumbnails(files, {(row["task"], row["doc_id"]) for row in disagreements})
    settings = [json.loads((place / "study.json").read_text(encoding="utf-8")) for place in places]
    setup = {
        "pretrained": "checkpoint",
        **{f"version_{name}": name for name in VERSIONS},
        **{"code": "code", "commit": "commit", "dtype": "dtype", "device_type": "device"},
        **{"batch_size": "batch size", "processes": "processes", "head_scores_hash": "head scores"},
    }
    undone = cells[cells["state"] != "done"].drop_duplicates("cell")
    states = cells.drop_duplicates("cell")["state"].value_counts().to_dict()
    headline = of_kind(study, "headline")
    # What all of these tables say stands below the last one.
    first = headline[0].notes if headline else []
    shared = [note for note in first if all(note in table.notes for table in headline)]
    encoded = base64.b64encode(csv(cells).to_csv(index=False).encode()).decode()
    return {
        "title": ", ".join(record["name"] for record in settings),
        "begun": min(record["created"] for record in settings)[:10],
        "states": states,
        "total": sum(states.values()),
        "left": list(map(plain, undone[["cell", "state", "attempts", "error"]].to_dict("records"))),
        "headline": [
            replace(table, notes=[note for note in table.notes if note not in shared]) for table in headline
        ],
        "shared_notes": shared,
        "pictures": [(picture.title, picture.inline_svg()) for picture in pictures(study, files)],
        "tables": [table for kind in KINDS[1:-1] for table in of_kind(study, kind)],
        "disagreements": disagreements,
        "images": images,
        "without_image": without,
        "setup": {title: sorted(map(str, cells[name].dropna().unique())) for name, title in setup.items()},
        "settings": json.dumps(
            [record.get("settings", {}) for record in settings], indent=2, ensure_ascii=False
        ),
        "csv": f"data:text/csv;base64,{encoded}",
        "version": __version__,
    }
