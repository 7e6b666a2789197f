"""Configurations, comparisons at equal effective budgets, and the tables in every format."""

import json
import re
from math import log2

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.methods import methods, published
from sparsemm_eval.study.commands import show
from sparsemm_eval.study.comparisons import MEAN, configurations, paired, scores_at, targets
from sparsemm_eval.study.results import collect
from sparsemm_eval.study.statistics import mean_interval, paired_difference
from sparsemm_eval.study.table_formats import write_tables
from sparsemm_eval.study.tables import Study, Table, knob_tables, main_tables, of_kind
from tests.study.study_folder import Spec, answer, effective_budget, grid, write_study

SEEDS = [Spec("random", 32, seed, {"window": 8}) for seed in (0, 1, 2)]
DOCUMENTS = 15


def tables(folder, kind, against=None):
    return of_kind(Study.of(*collect(folder), against), kind)


@pytest.fixture
def seeds(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), *SEEDS], DOCUMENTS)
    return collect(tmp_path / "s")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "s"
    write_study(folder, grid(budgets=(32, 16)), DOCUMENTS)
    return folder


def scores_of(spec, task="pages_qa"):
    metric = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}[task]
    return np.array([[answer(spec, task, doc)[0][metric]] for doc in range(DOCUMENTS)])


def text_of(interval):
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def test_seeds_are_a_second_source_of_variance(seeds):
    found = configurations(*seeds)
    row = found[found["method"] == "random"].iloc[0]
    interval = mean_interval(np.concatenate([scores_of(spec) for spec in SEEDS], axis=1))
    assert (row["seeds"], row["seeds_done"], row["state"]) == (3, 3, "done")
    assert row["score"] == pytest.approx(interval.mean)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["stderr"] == pytest.approx(interval.stderr)
    assert row["cells"] == [spec.id for spec in SEEDS]


def test_a_single_seed_keeps_the_cells_interval(seeds):
    cells, _ = seeds
    found = configurations(*seeds)
    full = found[found["method"] == "fullkv"].iloc[0]
    cell = cells[cells["method"] == "fullkv"].iloc[0]
    figures = ["score", "stderr", "ci_low", "ci_high"]
    assert full[figures].tolist() == cell[figures].tolist()


def test_seeds_that_are_not_done_are_marked(tmp_path):
    specs = [SEEDS[0], Spec("random", 32, 1, {"window": 8}, state="failed", error="x")]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], DOCUMENTS)
    row = configurations(*collect(tmp_path / "s")).iloc[1]
    assert (row["seeds"], row["seeds_done"], row["state"]) == (2, 1, "failed")
    assert row["score"] == pytest.approx(scores_of(SEEDS[0]).mean())
    (table,) = tables(tmp_path / "s", "main")
    assert table.rows[1][2].endswith(" *")
    assert any(note.startswith("* not all seeds") for note in table.notes)


def test_main_table(study):
    (table,) = tables(study, "main")
    assert table.title == "Scores: tiny-reader"
    assert table.columns == ["method", "budget", "kernel_size", "pages_qa", "eff.", "pages_ocr", "eff."]
    rows = {tuple(row[:3]): row[3:] for row in table.rows}
    assert len(rows) == len(table.rows) == 1 + 5 * 2 * 2 + 2
    assert rows["fullkv", "all", "–"][0] == text_of(mean_interval(np.ones((DOCUMENTS, 1))))
    spec = Spec("sparsemm", 16, None, {"window": 8, "kernel_size": 5}, ("pages_qa",))
    assert rows["sparsemm", "16", "5"][:2] == [text_of(mean_interval(scores_of(spec))), "11.2"]
    assert rows["snapkv", "8", "5"] == ["failed", "–", "–", "–"]
    assert rows["adakv", "256", "5"] == ["pending", "–", "–", "–"]


def test_a_methods_rows_run_over_its_budgets(study):
    (table,) = tables(study, "main")
    lines = [row[1] for row in table.rows if row[0] == "sparsemm"]
    assert lines == ["16", "32", "16", "32"]


def spec_of(method, budget, task):
    return Spec(method, budget, None, {"window": 8, "kernel_size": 5}, (task,))


def test_scores_at_an_effective_budget_lie_between_the_two_nearest(study):
    """SparseMM keeps 11.2 and 22.4 entries of 16 and 32: document by document, over the logarithm."""
    frame = configurations(*collect(study))
    curve = frame[(frame["label"] == "SparseMM, kernel_size 5") & (frame["task"] == "pages_qa")]
    low, high = (spec_of("sparsemm", budget, "pages_qa") for budget in (16, 32))
    assert effective_budget(low, 0) == pytest.approx(11.2)
    share = (log2(16) - log2(11.2)) / (log2(22.4) - log2(11.2))
    expected = (1 - share) * scores_of(low) + share * scores_of(high)
    np.testing.assert_allclose(scores_at(curve.sort_values("effective_budget"), 16).table, expected)
    assert scores_at(curve, 8) is None
    assert scores_at(curve, 64) is None
    assert targets(frame) == [16, 32]


def test_headline_table(study):
    overall, qa, _ = tables(study, "headline")
    assert (overall.title, qa.title) == (f"tiny-reader, {MEAN}", "tiny-reader, pages_qa")
    assert qa.columns == ["at equal effective budget", "16", "32"]
    rows = {row[0]: row[1:] for row in qa.rows}
    found = mean_interval(scores_of(spec_of("snapkv", 16, "pages_qa")))
    assert rows["SnapKV, kernel_size 5"][0] == text_of(found)
    assert rows["SparseMM, kernel_size 5"][1] == "–"
    best = {qa.rows[row][0].split(",")[0] for row, column in qa.bold if column == 1}
    assert best == {"SparseMM"}
    first = next(note for note in qa.notes if note.startswith("At 16: "))
    assert re.match(r"At 16: SparseMM, kernel_size \d leads \w+, kernel_size \d, \+0\.\d+ \[", first)
    assert "n = 15" in first
    numbers = json.loads(write_tables([qa], "json"))[0]["rows"]
    assert {row["target"] for row in numbers} == {16, 32}


def test_rows_of_the_headline_stand_in_the_studys_order(tmp_path):
    """SnapKV's curve begins beyond the first of the common budgets."""
    budgets = {"snapkv": (32, 64), "adakv": (16, 32), "h2o": (16, 32)}
    specs = [Spec(method, budget) for method, own in budgets.items() for budget in own]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], DOCUMENTS)
    (table,) = tables(tmp_path / "s", "headline")
    assert [row[0] for row in table.rows] == ["SnapKV", "AdaKV", "H2O"]
    assert [row[1] == "–" for row in table.rows] == [True, False, False]
    assert "(corrected for 2 comparisons)" in table.notes[0]


def test_paired_table_is_of_the_same_documents(study):
    (table,) = tables(study, "paired", against="adakv")
    assert "AdaKV, kernel_size 5 against" in table.title
    row = next(
        row for row in table.records if row["other"] == "SnapKV, kernel_size 5" and row["target"] == 32
    )
    first, second = (scores_of(spec_of(method, 32, "pages_qa")) for method in ("adakv", "snapkv"))
    expected = paired_difference(first, second)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert row["p_holm"] >= row["p"] == pytest.approx(expected.p)
    assert len(table.rows) == len(table.records)
    with pytest.raises(ConfigError, match="did you mean 'adakv'"):
        tables(study, "paired", against="adakw")


def test_a_methods_name_means_a_configuration_that_is_done(tmp_path):
    waiting = [
        Spec("sparsemm", budget, None, {"window": 8, "kernel_size": 5}, state="pending")
        for budget in (16, 32)
    ]
    done = [
        Spec(method, budget, None, {"window": 8, "kernel_size": 7})
        for method in ("sparsemm", "snapkv")
        for budget in (16, 32)
    ]
    write_study(tmp_path / "s", [Spec("fullkv"), *waiting, *done], DOCUMENTS)
    (table,) = tables(tmp_path / "s", "paired", against="sparsemm")
    assert "SparseMM, kernel_size 7 against" in table.title


def test_documents_of_one_image_are_one_cluster(tmp_path):
    """Two questions of each page are no more evidence than one where they are answered alike."""
    folder = tmp_path / "s"
    write_study(folder, [Spec("fullkv"), Spec("snapkv", 16), Spec("adakv", 16)], DOCUMENTS)
    for path in folder.glob("cells/*/stats/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["images"] = f"page {line['doc_id'] // 5}"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = Study.of(*collect(folder))
    row = study.configurations.iloc[1]
    labels = [doc // 5 for doc in range(DOCUMENTS)]
    expected = mean_interval(scores_of(Spec("snapkv", 16)), labels)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high))
    found = paired(study.equal, study.against)
    assert set(found["clusters"]) == {3}


def test_rows_of_other_code_or_dtype_are_marked(study, tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), Spec("snapkv", 16)], DOCUMENTS)
    cells, samples = collect(tmp_path / "s")
    cells.loc[cells["method"] == "snapkv", "dtype"] = "bfloat16"
    (table,) = main_tables(Study.of(cells, samples))
    assert "† rows differ in dtype: bfloat16, float32." in table.notes
    assert not any(note.startswith("†") for note in tables(study, "main")[0].notes)


def test_a_method_that_keeps_more_than_it_is_allowed_is_named(tmp_path):
    write_study(tmp_path / "s", [Spec("fullkv"), Spec("snapkv", 16), Spec("adakv", 16)], DOCUMENTS)
    cells, samples = collect(tmp_path / "s")
    cells.loc[cells["method"] == "adakv", "effective_budget"] = 18.4
    (table,) = main_tables(Study.of(cells, samples))
    more = [note for note in table.notes if "more than its nominal budget" in note]
    assert more == ["AdaKV kept up to 15.0% more than its nominal budget."]


def test_masking_table(tmp_path):
    masks = [Spec("mask", knobs={"mask_ratio": 0.1})]
    masks += [Spec("mask_random", seed=seed, knobs={"mask_ratio": 0.1}) for seed in (0, 1, 2)]
    write_study(tmp_path / "s", [Spec("fullkv"), *masks], DOCUMENTS)
    (table,) = tables(tmp_path / "s", "masking")
    assert [row[0] for row in table.rows] == [methods()[name].title for name in ("mask", "mask_random")]
    lost = paired_difference(scores_of(masks[0]), scores_of(Spec("fullkv")))
    assert table.rows[0][-1] == f"{lost.mean:+.3f} [{lost.low:+.3f}, {lost.high:+.3f}]"
    assert table.rows[1][1:4] == [
        "0.1",
        "3",
        text_of(mean_interval(np.hstack([scores_of(one) for one in masks[1:]]))),
    ]


def test_ablation_puts_a_knobs_values_side_by_side(study):
    found = Study.of(*collect(study))
    first, second = knob_tables(found, ["kernel_size", "window"])
    assert (first.title, second.title) == (
        "Ablation of kernel_size: tiny-reader, pages_qa",
        "Ablation of kernel_size: tiny-reader, pages_ocr",
    )
    assert first.columns == ["method", "budget", "kernel_size=5", "eff.", "kernel_size=7", "eff."]
    main = {tuple(row[:3]): row[3:5] for row in main_tables(found)[0].rows}
    for method, budget, *values in first.rows:
        assert values[:2] == main[method, budget, "5"]
        assert values[2:] == main.get((method, budget, "7"), ["–", "–"])


def test_rho_table(tmp_path):
    specs = [Spec("sparsemm", 32, None, {"window": 8, "ratio": ratio}) for ratio in (0, 0.1, 1.0)]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], DOCUMENTS)
    found = tables(tmp_path / "s", "rho")
    assert [table.columns for table in found] == [
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
    assert any("0.519 to 0.145" in note for note in found[0].notes)
    # the paper's ablation crosses ρ alone: all its rows
    (ablation,) = tables(tmp_path / "s", "ablation")
    assert [row[0] for row in ablation.rows] == ["fullkv", "sparsemm", "sparsemm", "sparsemm"]
    assert ablation.columns[:3] == ["method", "budget", "ratio"]
    everything = [table.title for table in tables(tmp_path / "s", "all")]
    assert len(everything) == len(set(everything))


def test_published_numbers_stand_beside_the_same_checkpoint_only(tmp_path):
    common = {"model": "vicuna", "tasks": ("docvqa_val",), "state": "pending"}
    specs = [
        Spec("fullkv", None, pretrained=published.VICUNA, **common),
        Spec("snapkv", 256, pretrained=published.VICUNA, **common),
        Spec("snapkv", 128, pretrained=published.VICUNA, **common),
    ]
    write_study(tmp_path / "s", specs)
    (table,) = tables(tmp_path / "s", "main")
    assert table.columns[-1] == "published"
    assert [row[-1] for row in table.rows] == ["0.68 [1]", "–", "0.64 [1]"]
    assert f"[1] {published.SPARSEMM}" in table.notes
    other = [Spec("snapkv", 256, pretrained="other/model", **common)]
    write_study(tmp_path / "o", other)
    assert "published" not in tables(tmp_path / "o", "main")[0].columns


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


def test_what_is_best_is_marked_in_every_format():
    table = Table("t", ["a", "b"], [["x", "1"], ["y", "2"]], [], bold=frozenset({(1, 1)}))
    assert "| y | **2** |" in write_tables([table], "markdown")
    assert r"y & \textbf{2} \\" in write_tables([table], "latex")
    assert "▸ 2" in write_tables([table], "text")


def test_published_numbers_only_beside_all_documents(tmp_path):
    spec = Spec("fullkv", None, pretrained=published.VICUNA, model="vicuna", tasks=("pages_qa",))
    write_study(tmp_path / "s", [spec], 4)
    (table,) = tables(tmp_path / "s", "main")
    assert any("no benchmark score" in note for note in table.notes)


def test_json_has_numbers(study):
    (main,) = json.loads(write_tables(tables(study, "main"), "json"))
    by_task = {row["task"]: row["evidence_recall"] for row in main["rows"] if row["method"] == "fullkv"}
    assert by_task == {"pages_qa": 1, "pages_ocr": None}
    row = next(row for row in main["rows"] if row["method"] == "sparsemm" and row["budget"] == 16)
    assert isinstance(row["score"], float)
    assert row["published"] == []
    failed = next(row for row in main["rows"] if row["state"] == "failed")
    assert failed["score"] is None


def command():
    app = typer.Typer()
    app.command()(show)
    return app


def test_command(study):
    found = CliRunner().invoke(command(), [str(study), "--format", "markdown", "--table", "main"])
    assert found.exit_code == 0
    assert found.output.strip() == write_tables(tables(study, "main"), "markdown").strip()


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
    (table,) = tables(tmp_path / "s", "all")
    assert [row[2] for row in table.rows] == ["pending", "pending"]
    assert pd.notna(table.notes).all()
