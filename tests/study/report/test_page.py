"""The page's file: contents, escaping, and what it must not refer to."""

import base64
import io
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.study.cell_files import read_study
from sparsemm_eval.study.comparisons import configurations
from sparsemm_eval.study.method_knobs import title_of
from sparsemm_eval.study.report import report_command, write
from sparsemm_eval.study.report.disagreements import worst
from sparsemm_eval.study.report.images import data_uri, thumbnails
from sparsemm_eval.study.results import collect, csv
from sparsemm_eval.study.tables import Study, of_kind
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
    assert "script" not in [tag for tag, _ in page.found]


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
        if tag == "a" and not attributes["href"].startswith("data:text/csv"):
            assert attributes["href"].removeprefix("#") in identifiers
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    # Accuracy, times and heads; the tables hold their numbers.
    assert tags.count("figure") == tags.count("svg") == 4


def test_what_has_no_score_comes_first(study, page):
    text = " ".join(page.text)
    cells, _ = collect(study)
    (failed,) = cells.loc[cells["state"] == "failed", "cell"]
    (pending,) = cells.loc[cells["state"] == "pending", "cell"]
    assert "2 of " in text
    assert text.index(failed) < text.index("Who wins at which effective budget")
    assert pending in text


def test_the_headline_is_the_table_and_says_how_sure_it_is(study, page):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    (first, *_) = of_kind(Study.of(*collect(study)), "headline")
    assert first.title in text
    assert all(note in text for note in first.notes)
    assert "leads" in text
    # What all of them say stands once.
    assert text.count(first.notes[-1]) == 1
    best = [attributes for tag, attributes in page.found if attributes.get("class") == "best"]
    assert len(best) >= len(first.bold)


def test_the_data_can_be_taken_along(study, page):
    [address] = [a["href"] for tag, a in page.found if tag == "a" and "download" in a]
    taken = pd.read_csv(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))
    cells, _ = collect(study)
    assert taken["score"].tolist() == pytest.approx(cells["score"].tolist(), nan_ok=True)


def test_texts_that_a_spreadsheet_would_compute_are_set_apart():
    frame = pd.DataFrame({"error": ["=HYPERLINK(1)", "+1", "fine", None]}, dtype="string").assign(score=-0.5)
    assert csv(frame)["error"].tolist()[:3] == ["'=HYPERLINK(1)", "'+1", "fine"]
    assert csv(frame)["score"].tolist() == [-0.5] * 4


def test_what_a_terminal_would_obey_is_not_passed_on(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv", state="failed", error="\x1b[2Jgone\x07")])
    cells, _ = collect(tmp_path / "s")
    assert cells["error"].tolist() == ["�[2Jgone�"]


def test_results_of_somebody_else_open_nothing_outside_their_folder(tmp_path):
    folder = tmp_path / "s"
    write_study(folder, [Spec("fullkv")], 3)
    (tmp_path / "secret.json").write_text('{"results": {}}')
    path = next(folder.glob("cells/*/status.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": "../../../secret.json"}))
    with pytest.raises(EvaluationError, match="is not below"):
        collect(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "http://localhost:9/x.json"}}},
        {"dataset_path": "imagefolder", "dataset_kwargs": {"data_dir": "/etc"}},
        {"dataset_path": "../../script.py"},
        {"dataset_path": "/home/user/data"},
    ],
)
def test_results_of_somebody_else_name_no_files_to_open(tmp_path, config, monkeypatch):
    spec = Spec("fullkv")
    write_study(tmp_path / "s", [spec], 2)
    path = next((tmp_path / "s" / "cells" / spec.id / "lmms").rglob("*_results.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"configs": {"other": config}}))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("something was opened"))
    images, without = thumbnails(read_study(tmp_path / "s"), {("other", 0)})
    assert images == {}
    assert "data set of the hub" in without["other"]


def test_pictures_are_read_without_network():
    program = [sys.executable, "-m", "sparsemm_eval.study.report.images"]
    request = {"path": "a/b", "name": None, "split": "test", "docs": [0]}
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        program,
        input=json.dumps(request),
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no network for pictures" in done.stderr


def test_page_of_an_unfinished_study(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv", state="pending"), Spec("snapkv", 16, state="running")])
    text = write(tmp_path / "s").read_text(encoding="utf-8")
    assert "2 of 2 runs have no score" in text
    assert "Nothing to draw yet." in text


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
    found = worst(configurations(cells, samples), samples, count=2)
    lost = [entry["lost"] for entry in found]
    assert lost == sorted(lost, reverse=True)
    expected = {}
    for spec in (spec for spec in grid(budgets=(16, 32)) if spec.state == "done" and spec.method != "fullkv"):
        (task,) = spec.tasks
        for doc in range(8):
            logged, measured = answer(spec, task, doc)
            if measured["answer"] != f"{task} {doc}":
                by_doc = expected.setdefault((spec.method, task), {})
                by_doc[doc] = max(by_doc.get(doc, 0), 1.0 - logged[METRICS[task]])
    for (method, task), by_doc in expected.items():
        title = title_of(method)
        shown = [e for e in found if e["label"].startswith(title) and e["task"] == task]
        assert [e["lost"] for e in shown] == pytest.approx(sorted(by_doc.values(), reverse=True)[:2])
        assert len({e["doc_id"] for e in shown}) == len(shown)


def test_without_a_full_cache_there_is_nothing_to_disagree_with(tmp_path):
    write_study(tmp_path / "s", [Spec("snapkv", 16)], 4)
    cells, samples = collect(tmp_path / "s")
    assert worst(configurations(cells, samples), samples) == []
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
        ({}, "do not name a data set of the hub"),
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
