"""Figures hold the study's numbers, in the methods' colours, and equal figures are equal files."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import method_named, methods
from sparsemm_eval.study import commands
from sparsemm_eval.study.cell_files import read_study
from sparsemm_eval.study.method_knobs import style_of
from sparsemm_eval.study.pictures import INK, pictures
from sparsemm_eval.study.results import collect
from sparsemm_eval.study.tables import Study
from tests.study.study_folder import Spec, grid, write_study

MASKS = [Spec("mask", knobs={"mask_ratio": share}) for share in (0.02, 0.05, 0.1)] + [
    Spec("mask_random", seed=seed, knobs={"mask_ratio": share})
    for share in (0.02, 0.05, 0.1)
    for seed in (0, 1)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_study(root, [*grid(), *grid(model="other-reader")])
    return root


@pytest.fixture(scope="module")
def study(folder):
    return Study.of(*collect(folder))


def by_name(study, files=()):
    return {picture.name: picture for picture in pictures(study, files)}


def test_curves_hold_the_studys_numbers(study):
    drawn = by_name(study)
    frame = study.configurations
    for model in ("tiny-reader", "other-reader"):
        figure = drawn[f"accuracy-{model}"].figure
        assert model in drawn[f"accuracy-{model}"].title
        tasks = [axes.get_title() for axes in figure.axes]
        assert tasks == ["pages_qa, n = 30", "pages_ocr, n = 30"]
        for axes, task in zip(figure.axes, ("pages_qa", "pages_ocr"), strict=True):
            rows = frame[(frame["model"] == model) & (frame["task"] == task) & (frame["seeds_done"] > 0)]
            curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
            expected = [curve for _, curve in rows[rows["budget"].notna()].groupby("label", sort=False)]
            assert len(curves) == len(expected) == 10  # five methods, two kernel sizes
            for line, curve in zip(curves, expected, strict=True):
                curve = curve.sort_values("effective_budget")
                assert line.get_color() == style_of(curve["method"].iloc[0]).color
                np.testing.assert_allclose(line.get_xdata(), curve["effective_budget"].astype(float))
                np.testing.assert_allclose(line.get_ydata(), curve["score"])
            # Two curves of a method are told apart.
            assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == len(curves)
            [full] = rows.loc[rows["method"] == "fullkv", "score"]
            assert [line.get_ydata()[0] for line in axes.lines if line.get_color() == INK] == [full]
        names = {text.get_text() for text in figure.legends[0].get_texts()}
        assert names == {*frame.loc[frame["budget"].notna(), "label"], "FullKV"}


def test_a_single_budget_has_points_with_intervals(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), Spec("snapkv", 16)], 12)
    study = Study.of(*collect(tmp_path / "s"))
    [axes] = by_name(study)["accuracy-tiny-reader"].figure.axes
    row = study.configurations.iloc[1]
    [bars] = axes.containers
    low, high = bars[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((row["ci_low"], row["ci_high"]))


def test_recall_stands_beside_its_chance_level(study):
    figure = by_name(study)["evidence-tiny-reader"].figure
    [axes] = figure.axes  # the documents of the other task have no boxes
    assert axes.get_title() == "pages_qa, n = 30"
    frame = study.configurations
    rows = frame[
        (frame["model"] == "tiny-reader") & (frame["task"] == "pages_qa") & (frame["seeds_done"] > 0)
    ]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 4]
    expected = [
        curve.sort_values("budget") for _, curve in rows[rows["budget"].notna()].groupby("label", sort=False)
    ]
    assert len(curves) == len(expected) == 10  # no line goes over several methods
    for line, curve in zip(curves, expected, strict=True):
        assert line.get_color() == style_of(curve["method"].iloc[0]).color
        np.testing.assert_allclose(line.get_xdata(), curve["evidence_recall"].astype(float))
        np.testing.assert_allclose(line.get_ydata(), curve["score"])
    hollow = [line for line in axes.lines if line.get_fillstyle() == "none"]
    chances = [chance for curve in expected for chance in curve["evidence_chance"]]
    assert [line.get_xdata()[0] for line in hollow] == pytest.approx(chances)
    assert not axes.texts  # where curves meet, texts on their points would run into each other


def test_masking_has_its_own_axis(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), *MASKS], 12)
    drawn = by_name(Study.of(*collect(tmp_path / "s")))
    [axes] = drawn["masking-tiny-reader"].figure.axes
    assert axes.get_xlabel() == "mask ratio"
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_color() for line in lines] == [style_of(name).color for name in ("mask", "mask_random")]
    assert lines[0].get_xdata().tolist() == [0.02, 0.05, 0.1]
    assert "accuracy-tiny-reader" not in drawn
    write_study(tmp_path / "one", [Spec("fullkv"), MASKS[0]], 12)
    [axes] = by_name(Study.of(*collect(tmp_path / "one")))["masking-tiny-reader"].figure.axes
    marker = style_of("mask").marker
    assert [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == marker] == [[0.02]]


def test_a_knob_with_three_values_has_a_figure(tmp_path):
    specs = [
        Spec("sparsemm", budget, None, {"ratio": ratio, "surplus": "drop"})
        for budget in (16, 32)
        for ratio in (0, 0.1, 1.0)
    ]
    specs += [
        Spec("sparsemm", budget, None, {"ratio": 0.1, "surplus": "redistribute"}) for budget in (16, 32)
    ]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], 12)
    figure = by_name(Study.of(*collect(tmp_path / "s")))["ratio-tiny-reader"].figure
    [axes] = figure.axes
    assert axes.get_xlabel() == "ratio"
    lines = [line for line in axes.lines if line.get_marker() == style_of("sparsemm").marker]
    assert sorted(line.get_xdata().tolist() for line in lines) == [[0.0, 0.1, 1.0]] * 2 + [[0.1]] * 2
    assert len({str(line._dash_pattern) for line in lines}) == 4
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "SparseMM, surplus redistribute, budget 16" in names


def test_tasks_that_differ_in_a_number_have_a_figure_over_lengths(tmp_path):
    tasks = [(f"pages_many_{count}",) for count in (2, 4, 8)]
    write_study(
        tmp_path / "s",
        [
            Spec(*method, tasks=task)
            for method in (("fullkv",), ("snapkv", 16), ("snapkv", 32))
            for task in tasks
        ],
        12,
    )
    study = Study.of(*collect(tmp_path / "s"))
    figure = by_name(study)["lengths-pages_many-tiny-reader"].figure
    score, agreement, time = figure.axes
    frame = study.configurations
    tokens = [frame.loc[frame["task"] == name, "full_budget"].iloc[0] for (name,) in tasks]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]
    for axes, column, scale, methods_drawn in (
        (score, "score", 1, ("fullkv", "snapkv", "snapkv")),
        (agreement, "agreement_similarity", 1, ("snapkv", "snapkv")),  # FullKV is what it is measured against
        (time, "decode_seconds_per_token", 1000, ("fullkv", "snapkv", "snapkv")),
    ):
        assert [line.get_color() for line in axes.lines] == [style_of(name).color for name in methods_drawn]
        expected = frame[frame[column].notna()].groupby(["method", "budget"], dropna=False, sort=False)
        for line, (_, rows) in zip(axes.lines, expected, strict=True):
            np.testing.assert_allclose(line.get_xdata(), tokens)
            np.testing.assert_allclose(line.get_ydata(), scale * rows[column].astype(float))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["FullKV", "SnapKV, budget 16", "SnapKV, budget 32"]


def test_heads_and_times(study, folder):
    drawn = by_name(study, read_study(folder))
    maps = drawn["heads-tiny-reader"].figure
    assert "nominal budget" in drawn["heads-tiny-reader"].title
    assert sum(bool(axes.images) for axes in maps.axes) == 5
    assert "not a benchmark" in drawn["times-tiny-reader"].title


def test_times_of_pruned_prompts_are_not_fullkvs(tmp_path):
    pruned = Spec("fullkv", knobs={"prune": "fastv", "image_share": 0.5})
    write_study(tmp_path / "s", [Spec("fullkv"), pruned, Spec("snapkv", 16)], 5)
    times = by_name(Study.of(*collect(tmp_path / "s")))["times-tiny-reader"]
    for axes in times.figure.axes:
        assert sum(line.get_marker() == "None" for line in axes.lines) == 1


def test_names_of_many_curves_stand_in_two_columns(tmp_path):
    wide, narrow = {"kernel_size": 7, "pooling": "max"}, {"kernel_size": 5, "pooling": "avg"}
    names = [name for name, method in methods().items() if method.evicts]
    specs = [Spec("snapkv", 16, knobs=wide), *(Spec(name, 16, knobs=narrow) for name in names)]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], 5)
    figure = by_name(Study.of(*collect(tmp_path / "s")))["accuracy-tiny-reader"].figure
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(specs) + 1 > 20
    assert legend._ncols == 2


def test_nothing_is_clipped(study, folder):
    for picture in by_name(study, read_study(folder)).values():
        picture.figure.draw_without_rendering()
        bounds = picture.figure.bbox.padded(1)
        texts = [picture.figure._suptitle, *(axes.title for axes in picture.figure.axes)]
        texts += [part for axes in picture.figure.axes for part in (axes.xaxis.label, axes.yaxis.label)]
        for text in texts:
            box = text.get_window_extent()
            assert bounds.x0 <= box.x0 <= box.x1 <= bounds.x1, text.get_text()


def test_every_method_looks_different():
    assert len({method.style for method in methods().values()}) == len(methods())


def test_a_picture_for_a_page_follows_its_colours(study):
    drawn = next(pictures(study))
    text = drawn.inline_svg()
    assert text.startswith("<svg ")
    assert "var(--ink)" in text
    assert INK not in text
    assert re.search(r'<svg[^>]* (width|height)="', text) is None


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_command_writes_equal_files(tmp_path, ending):
    folder = tmp_path / "study"
    write_study(folder, grid(budgets=(16, 64), kernels=(5,), tasks=("pages_qa",), model="other-reader"))
    for name in ("a", "b"):
        line = ["figures", str(folder), "--out", str(tmp_path / name), "-f", ending]
        assert CliRunner().invoke(commands.app, line, catch_exceptions=False).exit_code == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert f"accuracy-other-reader.{ending}" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_ending_is_refused(folder):
    outcome = CliRunner().invoke(commands.app, ["figures", str(folder), "-f", "gif"])
    assert isinstance(outcome.exception, ConfigError)
    assert str(outcome.exception) == "--format='gif' is not valid: expected one of png, svg, pdf"
    assert method_named("snapkv").evicts
