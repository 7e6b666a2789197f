"""The masking experiment: with a stand-in for lmms-eval, and once with the real command."""

from __future__ import annotations

import csv
import io
import json
import os
from math import sqrt
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, EvaluationError, JournalError
from sparsemm_eval.heads.commands import app
from sparsemm_eval.heads.masking import report as mask_report
from sparsemm_eval.heads.masking.evaluation import MaskEvaluation
from sparsemm_eval.heads.masking.experiment import (
    MaskPlan,
    Measured,
    Point,
    check_shares,
    run,
    table,
)
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.lmms.results import ResultsFile
from tests.lmms_process import checkpoint, environment, is_shipped

PLAN = MaskPlan(shares=(0.1, 0.05), seeds=(3, 7))


def score_of(point):
    return 0.9 - (8 if point.heads == "visual" else 1) * point.share - 0.01 * (point.seed or 0)


def measured(point):
    scores = {"qa": {"exact": score_of(point), "other": 0.5}, "ocr": {"accuracy": score_of(point) / 2}}
    return Measured(scores, {"qa": {"exact": 0.02}}, {"qa": 40})


def test_points_are_full_then_each_share_with_its_draws():
    assert list(PLAN.points()) == [
        Point("nothing", 0.0),
        *(Point("visual", 0.05), Point("random", 0.05, 3), Point("random", 0.05, 7)),
        *(Point("visual", 0.1), Point("random", 0.1, 3), Point("random", 0.1, 7)),
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shares": ()}, "shares"),
        ({"shares": (0.0,)}, "shares"),
        ({"shares": (0.6,)}, "shares"),
        ({"shares": (0.1, 0.1)}, "shares"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"mode": "zero"}, "mode"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        MaskPlan(**changes)


def test_shares_must_be_different_numbers_of_heads_and_leave_enough_others():
    check_shares(MaskPlan((0.25, 0.5)), HeadScores.from_array([[1.0, 0.0], [0.0, 0.0]]))
    for shares, heads in (((0.01, 0.02), 10), ((0.5,), 3)):
        with pytest.raises(ConfigError, match="numbers of heads"):
            check_shares(MaskPlan(shares), HeadScores.from_array([[1.0] * heads]))


def test_a_broken_experiment_goes_on_and_forgets_nothing(tmp_path):
    calls = []

    def breaking(point):
        calls.append(point)
        if len(calls) == 4:
            raise EvaluationError("killed")
        return measured(point)

    with pytest.raises(EvaluationError):
        run(PLAN, {"model": "m"}, breaking, tmp_path)
    found = run(PLAN, {"model": "m"}, breaking, tmp_path)
    assert calls == [*list(PLAN.points())[:4], *list(PLAN.points())[3:]]
    assert found == {point: measured(point) for point in PLAN.points()}
    run(PLAN, {"model": "m"}, breaking, tmp_path)
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("plan", "identity", "evaluated"),
    [
        (PLAN, {"model": "other"}, 7),
        (MaskPlan((0.1, 0.05), (3, 7), "output"), {"model": "m"}, 6),
        (MaskPlan((0.1, 0.2), (3, 7, 8)), {"model": "m"}, 5),
    ],
)
def test_only_points_of_the_same_run_are_known(tmp_path, plan, identity, evaluated):
    run(PLAN, {"model": "m"}, measured, tmp_path)
    calls = []
    run(plan, identity, lambda point: calls.append(point) or measured(point), tmp_path)
    assert len(calls) == evaluated


def test_a_metric_that_a_task_lacks_is_refused_after_the_first_point(tmp_path):
    calls = []
    with pytest.raises(ConfigError, match=r"metric='accuracy'.*qa has: exact, other"):
        run(PLAN, {}, lambda point: calls.append(point) or measured(point), tmp_path, metric="accuracy")
    assert len(calls) == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"format": "x", "version": 1, "points": {}}'])
def test_points_of_another_format_are_refused(tmp_path, text):
    (tmp_path / "points-00000.jsonl").write_text(text + "\n")
    with pytest.raises(JournalError, match="choose another folder"):
        run(PLAN, {}, measured, tmp_path)


def test_points_of_an_earlier_version_are_left_alone_and_said_to_be(tmp_path):
    (tmp_path / "mask.json").write_text("{}")
    said = []
    run(PLAN, {}, measured, tmp_path, said.append)
    assert "mask.json is of an earlier version of this package and is left alone" in said[0]
    assert (tmp_path / "mask.json").read_text() == "{}"


def measured_table(metric=None, plan=PLAN):
    return table({point: measured(point) for point in plan.points()}, 40, metric)


def test_table():
    rows = {(row["task"], row["heads"], row["share"]): row for row in measured_table().to_dict("records")}
    assert [key[1:] for key in rows if key[0] == "qa"] == [
        *(("nothing", 0.0), ("visual", 0.05), ("visual", 0.1), ("random", 0.05), ("random", 0.1)),
    ]
    full, best, drawn = (rows["qa", *key] for key in (("nothing", 0.0), ("visual", 0.05), ("random", 0.1)))
    assert full["metric"] == "exact"
    assert (full["samples"], full["count"], full["score"], full["standard_error"]) == (40, 0, 0.9, 0.02)
    assert (best["count"], best["draws"], best["score"], best["spread"]) == (2, 1, pytest.approx(0.5), None)
    assert (drawn["lowest"], drawn["highest"]) == (0.9 - 0.1 - 0.01 * 7, 0.9 - 0.1 - 0.01 * 3)
    assert (drawn["score"], drawn["spread"]) == (pytest.approx(0.75), pytest.approx(0.04 / sqrt(2)))
    assert (drawn["draws"], drawn["standard_error"]) == (2, None)
    other = rows["ocr", "nothing", 0.0]
    assert (other["metric"], other["samples"], other["standard_error"]) == ("accuracy", None, None)
    with pytest.raises(ConfigError, match="qa has: exact, other"):
        measured_table("accuracy")


def test_a_single_draw_has_no_spread():
    assert set(measured_table(plan=MaskPlan((0.1,), (3,))).spread) == {None}


def test_files(tmp_path):
    mask_report.save_all(measured_table(), 40, tmp_path, "a title")
    written = list(csv.DictReader(io.StringIO((tmp_path / "mask.csv").read_text())))
    assert len(written) == 10
    rows = {(row["task"], row["heads"], row["share"]): row for row in written}
    drawn = rows["qa", "random", "0.1"]
    assert (drawn["count"], drawn["draws"], drawn["standard_error"]) == ("4", "2", "")
    assert float(drawn["score"]) == pytest.approx(0.75)
    assert float(drawn["spread"]) == pytest.approx(0.04 / sqrt(2))
    assert (float(drawn["lowest"]), float(drawn["highest"])) == (pytest.approx(0.73), pytest.approx(0.77))
    assert rows["ocr", "nothing", "0.0"]["standard_error"] == ""
    text = (tmp_path / "mask.md").read_text()
    assert "| 10.0% | 4 | 0.100 ± 0.020 | 0.750 ± 0.028 | 0.730 … 0.770 |" in text
    assert "| 5.0% | 2 | 0.250 | 0.400" in text
    assert Image.open(tmp_path / "mask.png").width > Image.open(tmp_path / "mask.png").height


def work(**changes):
    values = {"family": "llava", "pretrained": "tiny-reader", "tasks": ("pages_qa",), "folder": Path("out")}
    return MaskEvaluation(**{**values, **changes})


def test_command_lines():
    job = work(head_scores="s.json", limit=5, model_args="device=cpu", batch_size=2)
    lines = {
        point: dict(zip(line[::2], line[1::2], strict=True))
        for point in PLAN.points()
        if (line := job.arguments(PLAN, point))
    }
    start = "pretrained=tiny-reader,journal=out/journal"
    full, best, drawn = (
        lines[p] for p in (Point("nothing", 0.0), Point("visual", 0.1), Point("random", 0.1, 7))
    )
    assert (full["--model"], full["--model_args"]) == ("llava_fullkv", f"{start},device=cpu")
    assert best["--model"] == "llava_mask"
    masked = "mask_ratio=0.1,mask_mode=query,head_scores=s.json"
    assert best["--model_args"] == f"{start},{masked},device=cpu"
    assert drawn["--model"] == "llava_mask_random"
    assert drawn["--model_args"] == f"{start},{masked},mask_seed=7,device=cpu"
    assert (full["--limit"], full["--batch_size"], full["--tasks"]) == ("5", "2", "pages_qa")
    assert "--limit" not in work(family="qwen2vl").arguments(PLAN, Point("nothing", 0.0))


def test_identity_names_what_matters():
    scores = HeadScores.from_array([[1.0, 2.0]])
    first = work().identity(scores)
    assert first["checkpoint"]["weights"].startswith("sha256:")
    assert json.loads(json.dumps(first)) == first
    others = (
        work(tasks=("pages_ocr",)).identity(scores),
        work(limit=3).identity(scores),
        work(model_args="dtype=float32").identity(scores),
        work(pretrained="org/model").identity(scores),
        work().identity(HeadScores.from_array([[2.0, 1.0]])),
    )
    assert all(other != first for other in others)
    assert work(batch_size=8).identity(scores) == first


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"family": "blip"}, "family"), ({"tasks": ()}, "tasks"), ({"model_args": "mask_seed=1"}, "model_args")],
)
def test_evaluations_that_cannot_be_run_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        work(**changes)


def fake_evaluate(arguments, processes=1):
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    share = float(given["--model_args"].partition("mask_ratio=")[2].partition(",")[0] or 0)
    score = 1 - (9 if given["--model"].endswith("_mask") else 1) * share
    contents = {
        "results": {"pages_qa": {"alias": "x", "exact_match,none": score, "exact_match_stderr,none": 0.1}},
        "n-samples": {"pages_qa": {"original": 200, "effective": 6}},
    }
    return [ResultsFile(Path("r.json"), contents)]


def test_measured_from_results():
    found = work().measure(PLAN, Point("visual", 0.1), fake_evaluate)
    assert found.scores == {"pages_qa": {"exact_match": pytest.approx(0.1)}}
    assert found.errors == {"pages_qa": {"exact_match": 0.1}}
    assert found.samples == {"pages_qa": 6}


def invoke(out, *more):
    line = ["mask", "--model", "tiny-reader", "--tasks", "pages_qa", "--out", str(out), *more]
    return CliRunner().invoke(app, line)


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(
        MaskEvaluation,
        "measure",
        lambda self, plan, point, real=MaskEvaluation.measure: real(self, plan, point, fake_evaluate),
    )
    outcome = invoke(tmp_path, "--shares", "0.05,0.1", "--seeds", "0,1")
    assert outcome.exit_code == 0, outcome.output
    assert "| 10.0% | 5 | 0.100 ± 0.100 | 0.900 ± 0.000 | 0.900 … 0.900 |" in outcome.output
    assert invoke(tmp_path, "--shares", "0.05,0.1", "--seeds", "0,1").output.count("known") == 7


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--shares", "a"), "shares='a'"),
        (("--shares", "0.6"), "shares"),
        (("--seeds", "-1"), "seeds"),
        (("--mode", "zero"), "mode='zero'"),
        (("--family", "blip"), "family='blip'"),
        (("--model-args", "budget"), "model_args='budget' is not valid: expected name=value"),
        (("--model-args", "device=cpu, journal=x"), "model_args="),
        (("--metric", "nope"), "metric='nope' is not valid: expected one that pages_qa has: exact_match"),
        (("--out", __file__), f"out='{__file__}' is not valid: expected a folder that can be written to"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, more, named):
    outcome = invoke(tmp_path, *more)
    assert isinstance(outcome.exception, ConfigError)
    assert named in str(outcome.exception)


def test_a_model_that_is_not_there_or_of_another_shape_is_refused_before_any_evaluation(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    other = tmp_path / "scores.json"
    HeadScores.from_array([[1.0, 0.0]]).save(other)
    for arguments, named in (
        (("--model", "no/such", "--scores", "tiny-reader"), "model='no/such' is not valid"),
        (("--scores", str(other)), "head scores are [1 layers, 2 query heads]"),
    ):
        assert named in str(invoke(tmp_path / "out", *arguments).exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is shipped")
def test_masking_the_visual_heads_of_the_shipped_reader(tmp_path, monkeypatch):
    for name, value in environment(tmp_path).items():
        monkeypatch.setitem(os.environ, name, value)
    reader = checkpoint("tiny-reader", tmp_path)
    out = tmp_path / "out"
    # a source that changes while it is tested is another identity
    identity = MaskEvaluation.identity(work(pretrained=reader), resolve(None, reader))
    monkeypatch.setattr(MaskEvaluation, "identity", lambda self, scores: identity)
    line = ["mask", "--model", reader, "--tasks", "pages_qa,pages_ocr", "--limit", "8", "--out", str(out)]
    line += ["--shares", "0.05", "--seeds", "0", "--batch-size", "4", "--model-args", "device=cpu"]
    outcome = CliRunner().invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    table = list(csv.DictReader((out / "mask.csv").read_text().splitlines()))
    score = {(row["task"], row["heads"]): float(row["score"]) for row in table}
    assert score["pages_qa", "nothing"] > 0.8
    assert score["pages_qa", "visual"] < score["pages_qa", "random"]
    assert score["pages_ocr", "visual"] < score["pages_ocr", "nothing"] - 0.3
    assert {row["samples"] for row in table} == {"8"}
    assert str(tmp_path) not in (out / "points-00000.jsonl").read_text()
    # all points are known now: nothing is started
    monkeypatch.setattr(MaskEvaluation, "measure", lambda *_: pytest.fail("evaluated again"))
    assert CliRunner().invoke(app, line).exit_code == 0
