import numpy as np
import pytest
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import method_named, methods
from sparsemm_eval.study import commands, curves, results, tables
from sparsemm_eval.study.method_knobs import REFERENCE, style_of, title_of
from sparsemm_eval.study.seeds import configurations
from tests.study.study_folder import grid, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_study(root, [*grid(), *grid(model="other-reader")])
    return root


def test_panels_hold_the_studys_numbers(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append((figure, path)))
    cells, samples = results.collect(folder)
    paths = curves.save_curves(cells, samples, tmp_path)
    assert [path.name for path in paths] == ["pages_qa.png", "pages_ocr.png"]
    frame = configurations(cells, samples)
    for figure, path in drawn:
        assert len(figure.axes) == 4  # two models, two kernel sizes
        for axes in figure.axes:
            model, _, kernel = axes.get_title().partition(", kernel_size ")
            lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
            evicting = [name for name in frame["method"].unique() if method_named(name).evicts]
            assert len(lines) == len(evicting) == 5
            for line, method in zip(lines, evicting, strict=True):
                assert line.get_color() == style_of(method).color
                chosen = (frame["task"] == path.stem) & (frame["model"] == model) & (frame["state"] == "done")
                rows = frame[chosen & (frame["method"] == method) & (frame["kernel_size"] == int(kernel))]
                rows = rows.sort_values("effective_budget")
                np.testing.assert_allclose(line.get_xdata(), rows["effective_budget"])
                np.testing.assert_allclose(line.get_ydata(), rows["score"])
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert set(legend) == {title_of(method) for method in (*evicting, REFERENCE)}


def test_every_methods_marker_is_known():
    assert {method.style.marker for method in methods().values()} <= set(curves.MARKERS)
    assert len({method.style for method in methods().values()}) == len(methods())


def test_a_model_without_a_variant_has_no_panel_of_it(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    cells, samples = results.collect(folder)
    cells = cells[(cells["model"] != "other-reader") | (cells["kernel_size"] != 7)]
    curves.save_curves(cells, samples, tmp_path)
    for figure in drawn:
        titles = [axes.get_title() for axes in figure.axes]
        assert sorted(titles) == [
            "other-reader, kernel_size 5",
            "tiny-reader, kernel_size 5",
            "tiny-reader, kernel_size 7",
        ]
        labelled = {axes.get_title() for axes in figure.axes if axes.get_xlabel()}
        assert labelled == {"other-reader, kernel_size 5", "tiny-reader, kernel_size 7"}
    titles = [table.title for table in tables.of_kind(cells, samples, "ablation")]
    assert titles
    assert not any("other-reader" in title for title in titles)


def test_the_command_writes_a_picture_per_task(folder, tmp_path):
    outcome = CliRunner().invoke(
        commands.app, ["figures", str(folder), "--out", str(tmp_path), "-f", "svg"], catch_exceptions=False
    )
    assert outcome.exit_code == 0
    for name in ("pages_qa", "pages_ocr"):
        assert (tmp_path / f"{name}.svg").read_text().count("<path") > 20


def test_another_ending_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        curves.save_curves(*results.collect(folder), tmp_path, "gif")
