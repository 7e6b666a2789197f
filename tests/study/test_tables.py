"""Seeds put together, and the tables in every format."""

import json
import re
from statistics import fmean

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.methods import methods, published
from sparsemm_eval.study.bootstrap import mean_interval
from sparsemm_eval.study.results import collect
from sparsemm_eval.study.seeds import configurations
from sparsemm_eval.study.show import show_command
from sparsemm_eval.study.table_formats import write_tables
from sparsemm_eval.study.tables import Table, knob_tables, main_tables, of_kind
from tests.study.study_folder import Spec, answer, grid, write_study

SEEDS = [Spec("random", 32, seed, {"window": 8}) for seed in (0, 1, 2)]
DOCUMENTS = 15


@pytest.fixture
def seeds(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), *SEEDS], DOCUMENTS)
    return collect(tmp_path / "s")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "s"
    write_study(folder, grid(budgets=(32, 16)), DOCUMENTS)
    return folder


def scores_of(spec):
    return [answer(spec, "pages_qa", doc)[0]["exact_match"] for doc in range(DOCUMENTS)]


def test_seeds_are_averaged_per_document_before_the_bootstrap(seeds):
    found = configurations(*seeds)
    row = found[found["method"] == "random"].iloc[0]
    by_seed = [scores_of(spec) for spec in SEEDS]
    values = [fmean(scores) for scores in zip(*by_seed, strict=True)]
    interval = mean_interval(values)
    assert (row["seeds"], row["seeds_done"], row["state"]) == (3, 3, "done")
    assert row["score"] == pytest.approx(fmean(values))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["stderr"] == pytest.approx(interval.stderr)
    means = [fmean(scores) for scores in by_seed]
    assert (row["score_min"], row["score_max"]) == pytest.approx((min(means), max(means)))
    assert row["cells"] == [spec.id for spec in SEEDS]
    # Three answers to a document are no three documents.
    naive = mean_interval([score for scores in by_seed for score in scores])
    assert row["stderr"] > naive.stderr


def test_a_single_seed_keeps_the_cells_interval(seeds):
    cells, _ = seeds
    found = configurations(*seeds)
    full = found[found["method"] == "fullkv"].iloc[0]
    cell = cells[cells["method"] == "fullkv"].iloc[0]
    assert (
        full[["score", "stderr", "ci_low", "ci_high"]].tolist()
        == cell[["score", "stderr", "ci_low", "ci_high"]].tolist()
    )


def test_seeds_that_are_not_done_are_marked(tmp_path):
    specs = [SEEDS[0], Spec("random", 32, 1, {"window": 8}, state="failed", error="x")]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], DOCUMENTS)
    cells, samples = collect(tmp_path / "s")
    row = configurations(cells, samples).iloc[1]
    assert (row["seeds"], row["seeds_done"], row["state"]) == (2, 1, "failed")
    assert row["score"] == pytest.approx(fmean(scores_of(SEEDS[0])))
    (table,) = main_tables(cells, samples)
    assert table.rows[1][2].endswith(" *")
    assert any(note.startswith("* not all seeds") for note in table.notes)


def test_main_table(study):
    (table,) = main_tables(*collect(study))
    assert table.title == "Scores: tiny-reader"
    assert table.columns == ["method", "budget", "kernel_size", "pages_qa", "eff.", "pages_ocr", "eff."]
    rows = {tuple(row[:3]): row[3:] for row in table.rows}
    assert len(rows) == len(table.rows) == 1 + 5 * 2 * 2 + 2
    assert rows["fullkv", "all", "–"][0] == "1.000 ± 0.000"
    spec = Spec("sparsemm", 16, None, {"window": 8, "kernel_size": 5}, ("pages_qa",))
    scores = scores_of(spec)
    interval = mean_interval(scores)
    expected = f"{fmean(scores):.3f} ± {(interval.high - interval.low) / 2:.3f}"
    assert rows["sparsemm", "16", "5"][:2] == [expected, "11.2"]
    assert rows["snapkv", "8", "5"] == ["failed", "–", "–", "–"]
    assert rows["adakv", "256", "5"] == ["pending", "–", "–", "–"]


def test_a_methods_rows_run_over_its_budgets(study):
    (table,) = main_tables(*collect(study))
    lines = [row[1] for row in table.rows if row[0] == "sparsemm"]
    assert lines == ["16", "32", "16", "32"]


def test_ablation_puts_a_knobs_values_side_by_side(study):
    cells, samples = collect(study)
    first, second = knob_tables(cells, samples, ["kernel_size", "window"])
    assert (first.title, second.title) == (
        "Ablation of kernel_size: tiny-reader, pages_qa",
        "Ablation of kernel_size: tiny-reader, pages_ocr",
    )
    assert first.columns == ["method", "budget", "kernel_size=5", "eff.", "kernel_size=7", "eff."]
    main = {tuple(row[:3]): row[3:5] for row in main_tables(cells, samples)[0].rows}
    for method, budget, *values in first.rows:
        assert values[:2] == main[method, budget, "5"]
        assert values[2:] == main.get((method, budget, "7"), ["–", "–"])


def test_rho_table(tmp_path):
    specs = [Spec("sparsemm", 32, None, {"window": 8, "ratio": ratio}) for ratio in (0, 0.1, 1.0)]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], DOCUMENTS)
    tables = of_kind(*collect(tmp_path / "s"), "rho")
    assert [table.columns for table in tables] == [
        [
            "method",
            "budget",
            "ρ=0 (window + score)",
            "eff.",
            "ρ=0.1",
            "eff.",
            "ρ=1 (window + uniform)",
            "eff.",
        ]
    ]
    assert any("0.519 to 0.145" in note for note in tables[0].notes)
    assert of_kind(*collect(tmp_path / "s"), "ablation") == []


def test_published_numbers_stand_beside_the_same_checkpoint_only(tmp_path):
    common = {"model": "vicuna", "tasks": ("docvqa_val",), "state": "pending"}
    specs = [
        Spec("fullkv", None, pretrained=published.VICUNA, **common),
        Spec("snapkv", 256, pretrained=published.VICUNA, **common),
        Spec("snapkv", 128, pretrained=published.VICUNA, **common),
    ]
    write_study(tmp_path / "s", specs)
    (table,) = main_tables(*collect(tmp_path / "s"))
    assert table.columns[-1] == "published"
    assert [row[-1] for row in table.rows] == ["0.68 [1]", "–", "0.64 [1]"]
    assert f"[1] {published.SPARSEMM}" in table.notes
    other = [Spec("snapkv", 256, pretrained="other/model", **common)]
    write_study(tmp_path / "o", other)
    assert "published" not in main_tables(*collect(tmp_path / "o"))[0].columns


@pytest.mark.parametrize(
    ("pretrained", "method", "task", "budget", "score"),
    [
        (published.VICUNA, "adakv", "textcaps_val", 256, 0.66),
        (published.MISTRAL, "sparsemm", "ocrbench", 64, 0.462),
        (published.QWEN2VL, "snapkv", "chartqa", 128, 0.796),
    ],
)
def test_published_values(pretrained, method, task, budget, score):
    rows = methods()[method].published
    (found,) = [row for row in rows if (row.pretrained, row.task, row.budget) == (pretrained, task, budget)]
    assert found.score == score


def test_published_scores_are_on_our_scales():
    rows = [(method.name, row) for method in methods().values() for row in method.published]
    assert len(rows) == 5 * 5 + 4 * 4 * 3
    assert all(0.3 < row.score < 1 for _, row in rows)
    assert len({(name, row.source, row.pretrained, row.task, row.budget) for name, row in rows}) == len(rows)


AWKWARD = Table(
    "a_b & 5 % | c", ["m_x", "ρ=1"], [["<b>|x", "1.0 ± 0.1"], ["[red]", "–"]], [{"a": None}], ["n $1"]
)


def test_markdown():
    lines = write_tables([AWKWARD], "markdown").splitlines()
    assert lines[0] == "### a_b & 5 % \\| c"
    assert lines[2:6] == ["| m_x | ρ=1 |", "| --- | --- |", "| &lt;b>\\|x | 1.0 ± 0.1 |", "| [red] | – |"]
    assert "* n $1" in lines


def test_latex():
    text = write_tables([AWKWARD], "latex")
    assert r"\caption{a\_b \& 5 \% | c}" in text
    assert r"m\_x & $\rho$=1 \\" in text
    assert r"1.0 $\pm$ 0.1 \\" in text
    assert r"n \$1" in text
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    # nothing that LaTeX would take for itself is left
    assert not re.search(r"(?<!\\)[_%$#](?![\\a-z])", text.replace(r"$\rho$", "").replace(r"$\pm$", ""))


def test_text_is_never_cut_off():
    wide = Table("t", [f"column {number}" for number in range(40)], [["[x]" * 3] * 40], [], ["note"])
    text = write_tables([wide], "text")
    assert text.count("[x][x][x]") == 40
    assert "…" not in text


def test_json_has_numbers(study):
    (main,) = json.loads(write_tables(of_kind(*collect(study), "main"), "json"))
    row = next(row for row in main["rows"] if row["method"] == "sparsemm" and row["budget"] == 16)
    assert isinstance(row["score"], float)
    assert row["published"] == []
    failed = next(row for row in main["rows"] if row["state"] == "failed")
    assert failed["score"] is None


def command():
    app = typer.Typer()
    app.command()(show_command)
    return app


def test_command(study):
    found = CliRunner().invoke(command(), [str(study), "--format", "markdown", "--table", "main"])
    assert found.exit_code == 0
    assert found.output.strip() == write_tables(of_kind(*collect(study), "main"), "markdown").strip()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--format", "xml"], ConfigError),
        (["--table", "x"], ConfigError),
        (["--table", "rho"], EvaluationError),
    ],
)
def test_what_there_is_not(study, options, error):
    found = CliRunner().invoke(command(), [str(study), *options])
    assert isinstance(found.exception, error)


def test_a_study_without_any_result(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv", state="pending"), Spec("snapkv", 16, state="pending")])
    (table,) = of_kind(*collect(tmp_path / "s"), "all")
    assert [row[2] for row in table.rows] == ["pending", "pending"]
    assert pd.notna(table.notes).all()
