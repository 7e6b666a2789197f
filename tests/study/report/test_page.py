"""The page's file: contents, escaping, and what it must not refer to."""

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.study.cell_files import read_study
from sparsemm_eval.study.report import report_command, write
from sparsemm_eval.study.report.disagreements import worst
from sparsemm_eval.study.report.images import data_uri, thumbnails
from sparsemm_eval.study.results import collect
from tests.study.study_folder import EVIL, METRICS, Spec, answer, grid, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "s"
    write_study(folder, grid(budgets=(16, 32)), 8)
    write(folder)
    return folder


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.found, self.text, self.stack = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "input", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, "elements are not nested"

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(study):
    elements = Elements()
    elements.feed((study / "report.html").read_text(encoding="utf-8"))
    assert elements.stack == []
    return elements


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), (tag, value)
    policies = [a["content"] for tag, a in page.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]


def test_answers_cannot_become_elements(page):
    assert any(EVIL in text for text in page.text), "the invented answer is to be shown as text"
    assert not any("onerror" in attributes for _, attributes in page.found)
    scripts = [attributes for tag, attributes in page.found if tag == "script"]
    assert len(scripts) == 2 + 3  # data and CSV; plotly, figures, page


def test_accessible_structure(page):
    tags = [tag for tag, _ in page.found]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("footer") == 1
    assert ("html", {"lang": "en"}) in page.found
    headings = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    identifiers = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for tag, attributes in page.found:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in identifiers
        if tag == "a":
            assert attributes["href"].removeprefix("#") in identifiers
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    figures = tags.count("figure")
    assert figures == 4 * 2 + 1
    assert sum("alternative" in attributes.get("class", "") for _, attributes in page.found) == figures


def test_failed_cells_come_first_and_unfinished_ones_are_named(study, page):
    text = " ".join(page.text)
    cells, _ = collect(study)
    (failed,) = cells.loc[cells["state"] == "failed", "cell"]
    (pending,) = cells.loc[cells["state"] == "pending", "cell"]
    assert "1 run has failed" in text
    assert text.index(failed) < text.index("Accuracy against effective budget")
    assert pending in text


def test_embedded_data_are_the_tables(study):
    text = (study / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    csv = json.loads(
        re.search(r'<script type="application/json" id="csv-data">(.*?)</script>', text, re.S)[1]
    )
    cells, _ = collect(study)
    assert csv == cells.to_csv(index=False)
    row = next(r for r in data["configurations"] if r["method"] == "sparsemm" and r["budget"] == 16)
    cell = cells[(cells["method"] == "sparsemm") & (cells["budget"] == 16)].iloc[0]
    assert row["score"] == cell["score"]
    assert row["effective_budget"] == cell["effective_budget"]
    kept = {entry["cell"]: entry["kept"] for entry in data["kept"]}
    assert len(kept) == cells[cells["state"] == "done"]["cell"].nunique()
    assert [len(kept[cell["cell"]]), len(kept[cell["cell"]][0])] == [6, 8]


def test_page_of_an_unfinished_study(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv", state="pending"), Spec("snapkv", 16, state="running")])
    text = write(tmp_path / "s").read_text(encoding="utf-8")
    assert "2 runs are not finished" in text
    assert "No run has recorded them." in text


def test_out_and_command(study, tmp_path):
    app = typer.Typer()
    app.command()(report_command)
    out = tmp_path / "deep" / "page.html"
    found = CliRunner().invoke(app, [str(study), "--out", str(out)])
    assert found.exit_code == 0
    assert found.output.split() == [str(out)]
    assert out.read_text() == (study / "report.html").read_text()


def test_no_study(tmp_path):
    with pytest.raises(EvaluationError, match="no study folder"):
        write(tmp_path)


def test_worst_disagreements_against_a_loop(study):
    cells, samples = collect(study)
    found = worst(cells, samples, ["kernel_size"], per_cell=3)
    lost = [entry["lost"] for entry in found]
    assert lost == sorted(lost, reverse=True)
    specs = {spec.id: spec for spec in grid(budgets=(16, 32)) if spec.state == "done"}
    for identifier, spec in specs.items():
        (task,) = spec.tasks
        expected = []
        for doc in range(8):
            logged, measured = answer(spec, task, doc)
            if measured["answer"] != f"{task} {doc}":
                expected.append(1.0 - logged[METRICS[task]])
        own = sorted((expected if spec.method != "fullkv" else []), reverse=True)[:3]
        seeds = (spec.method, spec.budget, spec.seed, spec.knobs.get("kernel_size"), task)
        shown = [
            entry["lost"]
            for entry in found
            if (entry["method"], entry["budget"], entry["seed"], entry["knobs"]["kernel_size"], entry["task"])
            == seeds
        ]
        assert shown == pytest.approx(own), identifier


def test_without_a_full_cache_there_is_nothing_to_disagree_with(tmp_path):
    write_study(tmp_path / "s", [Spec("snapkv", 16)], 4)
    assert worst(*collect(tmp_path / "s"), []) == []
    assert "there is no FullKV run to compare with" in write(tmp_path / "s").read_text(encoding="utf-8")


def test_pictures_of_pages(study):
    images, without = thumbnails(read_study(study), {("pages_qa", 3), ("pages_ocr", 0), ("pages_qa", 10**6)})
    assert set(images) == {"pages_qa/3", "pages_ocr/0"}
    assert without == {}
    kind, content = images["pages_qa/3"].split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert max(image.size) <= 360


def test_a_picture_is_made_small_but_keeps_its_shape():
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "PNG")
    _, content = data_uri(buffer.getvalue(), side=100).split(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (100, 50)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "do not name the task's data set"),
        ({"process_docs": "<function f>", "dataset_path": "x/y"}, "filters its documents"),
        (
            {"dataset_path": "nobody/nothing", "test_split": "test"},
            "nobody/nothing cannot be read without network",
        ),
    ],
)
def test_a_task_without_pictures_says_why(tmp_path, config, reason):
    spec = Spec("snapkv", 16)
    write_study(tmp_path / "s", [spec], 2)
    path = next((tmp_path / "s" / "cells" / spec.id / "lmms").rglob("*_results.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"configs": {"other": config}}))
    images, without = thumbnails(read_study(tmp_path / "s"), {("other", 0)})
    assert images == {}
    assert reason in without["other"]
