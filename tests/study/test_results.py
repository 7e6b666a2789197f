"""A study folder read back: every figure against a loop over the files."""

import json
import os
from statistics import fmean

import numpy as np
import pandas as pd
import pytest

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.study import display, results
from sparsemm_eval.study.cell_files import CellFiles, read_study
from sparsemm_eval.study.columns import EVIDENCE, SAMPLE_COLUMNS, crossed_knobs
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.results import collect, write
from sparsemm_eval.study.statistics import mean_interval
from tests import lmms_process
from tests.study.study_folder import EVIL, RESTORED, Spec, answer, effective_budget, grid, write_study

FULL = Spec("fullkv", tasks=("pages_qa", "pages_ocr"))
SPARSE = Spec("sparsemm", 32, None, {"window": 8, "ratio": 0.2}, ("pages_qa", "pages_ocr"))
DOCUMENTS = 12


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "s"
    write_study(folder, [FULL, SPARSE], DOCUMENTS)
    return folder


def row_of(cells, spec, task):
    found = cells[(cells["cell"] == spec.id) & (cells["task"] == task)]
    assert len(found) == 1
    return found.iloc[0]


def measured(spec, task, documents=range(DOCUMENTS)):
    return [answer(spec, task, doc)[1] for doc in documents]


@pytest.mark.parametrize("task", ["pages_qa", "pages_ocr"])
def test_a_task_of_a_cell_with_two(study, task):
    row = row_of(collect(study)[0], SPARSE, task)
    metric = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}[task]
    scores = [answer(SPARSE, task, doc)[0][metric] for doc in range(DOCUMENTS)]
    samples = measured(SPARSE, task)
    interval = mean_interval(np.array(scores)[:, None])
    assert row["metric"] == metric
    assert row["score"] == pytest.approx(fmean(scores))
    assert (row["stderr"], row["ci_low"], row["ci_high"]) == (interval.stderr, interval.low, interval.high)
    assert json.loads(row["scores"]) == {metric: pytest.approx(fmean(scores))}
    assert row["samples"] == DOCUMENTS
    assert row["effective_budget"] == pytest.approx(
        fmean(effective_budget(SPARSE, d) for d in range(DOCUMENTS))
    )
    assert row["effective_budget"] < row["budget"] == 32
    assert row["full_budget"] == pytest.approx(fmean(200 + 10 * doc for doc in range(DOCUMENTS)))
    for name in ("kv_bytes", "kv_bytes_full", "kv_bytes_end"):
        assert row[f"{name}_per_sample"] == pytest.approx(fmean(sample[name] for sample in samples))
    timed = [sample for sample in samples if sample["doc_id"] != RESTORED]
    assert row["samples_timed"] == DOCUMENTS - 1
    for name in ("prefill_seconds", "kv_bytes_reserve"):
        assert row[f"{name}_per_sample"] == pytest.approx(fmean(sample[name] for sample in timed))
    # the first document gave one token, and so has no time per token
    decode = fmean(sample["decode_seconds_per_step"] for sample in timed[1:])
    assert row["decode_seconds_per_step"] == pytest.approx(decode)
    assert row["decode_seconds_per_token"] == pytest.approx(decode / 2)
    assert row["kv_bytes_peak_per_call"] == max(sample["kv_bytes_peak_per_call"] for sample in timed)
    shares = sum(s["kv_bytes"] for s in samples) / sum(s["kv_bytes_full"] for s in samples)
    assert row["kv_share"] == pytest.approx(shares)
    same = [sample["answer"] == f"{task} {sample['doc_id']}" for sample in samples]
    assert row["agreement"] == pytest.approx(fmean(same))


def test_knobs_versions_and_hashes(study):
    cells, _ = collect(study)
    row = row_of(cells, SPARSE, "pages_qa")
    assert (row["window"], row["ratio"], row["pooling"], row["surplus"]) == (8, 0.2, "avg", "drop")
    assert (row["version_torch"], row["commit"], row["dtype"]) == ("2.15", "0123456789abcdef", "float32")
    assert (row["state"], row["attempts"], row["seconds"], row["batch_size"]) == ("done", 1, 12.5, 4)
    assert row["head_scores_hash"] == "ab" * 32
    full = row_of(cells, FULL, "pages_qa")
    knobs = [
        "budget",
        "window",
        "ratio",
        "kernel_size",
        "pooling",
        "gqa",
        "surplus",
        "agreement",
        "head_scores_hash",
    ]
    assert full[knobs].isna().all()


def test_evidence_is_of_documents_that_have_boxes(study):
    cells, samples = collect(study)
    row, without = (row_of(cells, SPARSE, task) for task in ("pages_qa", "pages_ocr"))
    for name in ("evidence_recall", "evidence_chance", "evidence_recall_mean"):
        assert row[name] == pytest.approx(fmean(sample[name] for sample in measured(SPARSE, "pages_qa")))
    assert (row["evidence_tokens_per_sample"], row["evidence_samples"]) == (6, DOCUMENTS)
    assert without[[*EVIDENCE]].isna().all()
    assert row_of(cells, FULL, "pages_qa")["evidence_recall"] == 1
    of_cell = samples[samples["cell"] == SPARSE.id].groupby("task")
    assert of_cell["evidence_recall"].mean()["pages_qa"] == pytest.approx(row["evidence_recall"])
    assert of_cell["evidence_recall"].count()["pages_ocr"] == 0


def test_samples_from_before_evidence_have_none(study):
    for path in study.glob("cells/*/stats/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{name: row[name] for name in row if not name.startswith("evidence")} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    cells, samples = collect(study)
    assert cells[[*EVIDENCE]].isna().all(axis=None)
    assert samples["evidence_recall"].isna().all()
    assert row_of(cells, SPARSE, "pages_qa")["score"] > 0


def test_columns_are_those_of_the_documentation(study):
    cells, samples = collect(study)
    text = (results.__file__, "docs", "studies.md")
    page = os.path.join(os.path.dirname(text[0]), "..", "..", *text[1:])
    with open(page, encoding="utf-8") as file:
        documented = file.read()
    for column in (*cells.columns, *samples.columns):
        known = "version_" if column.startswith("version_") else column
        assert f"`{known}" in documented, column


def test_samples(study):
    _, samples = collect(study)
    assert list(samples.columns) == list(SAMPLE_COLUMNS)
    assert len(samples) == 2 * 2 * DOCUMENTS
    full = samples[samples["cell"] == FULL.id]
    assert full["fullkv_answer"].isna().all()
    for _, row in samples[samples["cell"] == SPARSE.id].iterrows():
        logged, figures = answer(SPARSE, row["task"], row["doc_id"])
        truth = answer(FULL, row["task"], row["doc_id"])[1]["answer"]
        assert (row["question"], row["target"], row["answer"]) == (
            logged["input"],
            logged["target"],
            figures["answer"],
        )
        assert row["fullkv_answer"] == truth
        assert row["identical"] == (truth == figures["answer"])
        assert (row["sample"], row["tokens"], row["prompt_tokens"]) == (
            figures["sample"],
            5,
            figures["prompt_tokens"],
        )
    by_task = samples[samples["cell"] == SPARSE.id].groupby("task")["score"].mean()
    assert by_task["pages_qa"] == pytest.approx(row_of(collect(study)[0], SPARSE, "pages_qa")["score"])


def test_another_prompt_is_not_compared(study):
    path = next((study / "cells" / FULL.id / "stats").glob("*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["sample"] = "another"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    _, samples = collect(study)
    first = samples[(samples["cell"] == SPARSE.id) & (samples["task"] == "pages_qa")].iloc[0]
    assert pd.isna(first["identical"])
    assert pd.isna(first["fullkv_answer"])


def test_failed_interrupted_and_waiting_cells_have_rows_without_scores(tmp_path):
    specs = [
        FULL,
        Spec("snapkv", 16, state="failed", error=EVIL, tasks=("pages_qa", "pages_ocr")),
        Spec("snapkv", 32, state="running"),
        Spec("snapkv", 64, state="pending"),
    ]
    write_study(tmp_path / "s", specs, 5)
    cells, samples = collect(tmp_path / "s")
    assert cells["state"].tolist() == ["done", "done", "failed", "failed", "interrupted", "pending"]
    rest = cells.iloc[2:]
    assert (
        rest[["metric", "score", "stderr", "samples", "effective_budget", "agreement"]].isna().all(axis=None)
    )
    assert rest["task"].tolist() == ["pages_qa", "pages_ocr", "pages_qa", "pages_qa"]
    assert rest["error"].iloc[0] == EVIL
    assert set(samples["cell"]) == {FULL.id}


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_results_that_cannot_be_read_make_a_failed_cell(study, damage):
    path = next((study / "cells" / SPARSE.id / "lmms").rglob("*_results.json"))
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text()[:40])
    row = row_of(collect(study)[0], SPARSE, "pages_qa")
    assert row["state"] == "failed"
    assert path.name in row["error"]
    assert pd.isna(row["score"])


def test_a_task_without_score_is_failed(study):
    path = next((study / "cells" / SPARSE.id / "lmms").rglob("*_results.json"))
    contents = json.loads(path.read_text())
    contents["results"]["pages_qa"] = {"alias": "pages_qa", "exact_match,none": float("nan")}
    path.write_text(json.dumps(contents))
    cells, _ = collect(study)
    assert row_of(cells, SPARSE, "pages_qa")["state"] == "failed"
    assert row_of(cells, SPARSE, "pages_ocr")["state"] == "done"


def test_samples_that_do_not_make_up_the_score_give_no_interval(study):
    path = next((study / "cells" / SPARSE.id / "lmms").rglob("*_results.json"))
    contents = json.loads(path.read_text())
    contents["results"]["pages_qa"]["exact_match,none"] = 0.123
    path.write_text(json.dumps(contents))
    cells, samples = collect(study)
    row = row_of(cells, SPARSE, "pages_qa")
    assert row["score"] == 0.123
    assert row[["stderr", "ci_low", "ci_high"]].isna().all()
    assert "not the reported 0.123" in row["note"]
    of_task = (samples["cell"] == SPARSE.id) & (samples["task"] == "pages_qa")
    assert samples.loc[of_task, "score"].isna().all()


def test_without_logged_samples_the_score_stays(study):
    for path in (study / "cells" / SPARSE.id / "lmms").rglob("*_samples_pages_qa.jsonl"):
        path.unlink()
    row = row_of(collect(study)[0], SPARSE, "pages_qa")
    assert row["note"] == "no confidence interval: lmms-eval logged no samples"
    assert row["score"] == row["score"]
    assert row["samples"] == DOCUMENTS


def test_skipped_samples_are_counted_with_their_task(tmp_path):
    spec = Spec("snapkv", 16)
    write_study(tmp_path / "s", [Spec("fullkv"), spec], 6, skipped=(2, 4))
    cells, _ = collect(tmp_path / "s")
    row = row_of(cells, spec, "pages_qa")
    assert (row["samples"], row["skipped"]) == (4, 2)


def test_an_earlier_attempts_samples_are_not_mixed_in(study):
    stats = study / "cells" / SPARSE.id / "stats"
    current = next(stats.glob("*.jsonl"))
    old = json.loads(current.read_text().splitlines()[0]) | {"effective_budget": 1e6}
    (stats / "20250101T000000_llava_sparsemm_000000000000_sparsemm_samples.rank0.jsonl").write_text(
        json.dumps(old)
    )
    assert row_of(collect(study)[0], SPARSE, "pages_qa")["effective_budget_max"] < 1e3


def test_several_ranks_are_one_cell(study):
    whole, _ = collect(study)
    path = next((study / "cells" / SPARSE.id / "stats").glob("*.rank0.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[::2]))
    path.with_name(path.name.replace("rank0", "rank1")).write_text("".join(lines[1::2]))
    split, _ = collect(study)
    pd.testing.assert_frame_equal(whole, split)


def test_types_do_not_depend_on_what_is_missing(study, tmp_path):
    write_study(tmp_path / "empty", [Spec("snapkv", 16, knobs={"window": 8}, state="pending")])
    full_cells, full_samples = collect(study)
    cells, samples = collect(tmp_path / "empty")
    assert dict(cells.dtypes) == dict(full_cells.dtypes)
    assert dict(samples.dtypes) == dict(full_samples.dtypes)
    assert len(samples) == 0


def test_write_and_read_back(study):
    write(study)
    paths = [study / name for name in ("results.parquet", "results.csv", "samples.parquet")]
    cells, samples = collect(study)
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), cells, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(paths[2]), samples, check_dtype=False)
    csv = pd.read_csv(paths[1])
    assert csv["score"].tolist() == pytest.approx(cells["score"].tolist())
    assert list(csv.columns) == list(cells.columns)
    assert not list(study.glob("*.tmp"))


def test_a_write_that_fails_leaves_the_old_files(study, monkeypatch):
    write(study)
    paths = [study / name for name in ("results.parquet", "results.csv", "samples.parquet")]
    before = [path.read_bytes() for path in paths]

    def full_disk(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(study)
    assert [path.read_bytes() for path in paths] == before
    assert not list(study.glob("*.tmp"))


def test_crossed_knobs(tmp_path):
    write_study(tmp_path / "s", grid(budgets=(16,), tasks=("pages_qa",)), 4)
    assert crossed_knobs(collect(tmp_path / "s")[0]) == ["kernel_size"]


def test_a_crossed_knob_of_a_method_becomes_a_column(tmp_path):
    specs = [Spec("adakv", 16, knobs={"adakv_floor": floor}) for floor in (0.1, 0.3)]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], 4)
    cells, _ = collect(tmp_path / "s")
    assert cells["adakv_floor"].tolist()[1:] == [0.1, 0.3]
    assert list(cells.columns).index("adakv_floor") == list(cells.columns).index("surplus") + 1
    assert crossed_knobs(cells) == ["adakv_floor"]


def test_the_score_of_entries_is_not_taken_for_a_documents(tmp_path):
    specs = [Spec("sparsemm", 16, knobs={"score": score}) for score in ("mixkv", "random")]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs, Spec("sparsemm", 16)], 4)
    cells, _ = collect(tmp_path / "s")
    assert cells["entry_score"].dropna().tolist() == ["mixkv", "random"]
    assert cells["score"].between(0, 1).all()
    assert crossed_knobs(cells) == ["entry_score"]


def test_a_knob_left_at_its_default_differs_from_one_that_is_set(tmp_path):
    specs = [Spec("adakv", 16), Spec("adakv", 16, knobs={"adakv_floor": 0.3})]
    write_study(tmp_path / "s", [Spec("fullkv"), *specs], 4)
    cells, _ = collect(tmp_path / "s")
    assert cells["adakv_floor"].tolist()[1:] == [0.2, 0.3]
    assert crossed_knobs(cells) == ["adakv_floor"]


def test_a_finished_cell_is_read_once(study, monkeypatch):
    before = collect(study)
    monkeypatch.setattr(CellFiles, "logged", lambda *_: pytest.fail("it was read again"))
    for ours, known in zip(collect(study), before, strict=True):
        pd.testing.assert_frame_equal(ours, known)


def test_an_attempt_of_its_own_is_read_anew(study):
    collect(study)
    path = study / "cells" / SPARSE.id / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "2027-01-01T00:00:00+00:00"}))
    for logged in (study / "cells" / SPARSE.id / "lmms").rglob("*_samples_pages_qa.jsonl"):
        logged.unlink()
    assert row_of(collect(study)[0], SPARSE, "pages_qa")["note"].startswith("no confidence interval")


def test_agreement_comes_with_the_later_of_the_two(tmp_path):
    folder = tmp_path / "s"
    write_study(folder, [FULL, SPARSE], DOCUMENTS)
    status = folder / "cells" / FULL.id / "status.json"
    later = status.read_text()
    status.write_text(json.dumps(json.loads(later) | {"state": "running"}))
    assert pd.isna(row_of(collect(folder)[0], SPARSE, "pages_qa")["agreement"])
    status.write_text(later)
    assert row_of(collect(folder)[0], SPARSE, "pages_qa")["agreement"] > 0


def test_a_cell_of_other_code_is_stale_and_has_no_score(study):
    path = study / "cells" / SPARSE.id / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": "of today"}))
    row = row_of(collect(study)[0], SPARSE, "pages_qa")
    assert row["state"] == "stale"
    assert row["error"] == "done before a change of settings; it will be run again"
    assert pd.isna(row["score"])


def test_two_studies_are_put_together(tmp_path):
    more = Spec("snapkv", 64, None, {"window": 8}, FULL.tasks)
    write_study(tmp_path / "a", [FULL, SPARSE], DOCUMENTS)
    write_study(tmp_path / "b", [FULL, more], DOCUMENTS)
    cells, samples = collect([tmp_path / "a", tmp_path / "b"])
    assert set(cells["cell"]) == {FULL.id, SPARSE.id, more.id}
    assert len(cells) == 6
    assert row_of(cells, more, "pages_qa")["study"] == "b"
    assert samples.groupby("cell").size().to_dict() == dict.fromkeys(set(cells["cell"]), 2 * DOCUMENTS)


def test_collecting_for_a_cell_reads_that_cell_and_its_reference(study, monkeypatch):
    read = []
    monkeypatch.setattr(CellFiles, "logged", lambda self, task: read.append(self.cell["id"]) or [])
    cells, _ = collect(study, [SPARSE.id])
    assert set(cells["cell"]) == set(read) == {SPARSE.id}


def test_what_a_study_of_others_holds_is_put_down_nowhere_it_cannot_be(study, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results, "write_json_atomically", forbidden)
    assert row_of(collect(study)[0], SPARSE, "pages_qa")["state"] == "done"


@pytest.mark.parametrize("text", ["[1]", "{}", "[" * 100_000, '"x"'])
@pytest.mark.parametrize("name", ["study.json", "cells/{id}/cell.json", "cells/{id}/status.json"])
def test_a_record_that_is_no_record_is_named(tmp_path, name, text):
    [cell] = write_study(tmp_path, [Spec("fullkv")])
    path = tmp_path / name.format(id=cell)
    path.write_text(text)
    if (path.name, text) == ("status.json", "{}"):
        return  # as good as none
    with pytest.raises(EvaluationError, match=f"{path.name} is damaged"):
        collect([tmp_path])
    with pytest.raises(EvaluationError, match=f"{path.name} is damaged"):
        display.views(StudyFolder(tmp_path), StudyFolder(tmp_path).cells())


@pytest.mark.parametrize("text", ["[1]", '{"resul', "[" * 100_000])
def test_results_that_cannot_be_read_leave_the_other_cells(tmp_path, text):
    first, second = write_study(tmp_path, [Spec("fullkv"), Spec("snapkv", 32)])
    next((tmp_path / "cells" / second).rglob("*_results.json")).write_text(text)
    found = display.views(StudyFolder(tmp_path), StudyFolder(tmp_path).cells())
    assert [(one.id, one.state) for one in found] == [(first, "done"), (second, "failed")]
    assert "is damaged" in found[1].error
    assert [cell.done for cell in read_study(tmp_path)] == [True, False]


@pytest.mark.parametrize("text", ["[1]\n", "{}\n", "[" * 100_000])
@pytest.mark.parametrize("pattern", ["*_samples_pages_qa.jsonl", "*.rank0.jsonl"])
def test_samples_that_are_none_make_a_failed_cell(tmp_path, pattern, text):
    [cell] = write_study(tmp_path, [Spec("fullkv")])
    next((tmp_path / "cells" / cell).rglob(pattern)).write_text(text)
    [row] = collect([tmp_path])[0].to_dict("records")
    assert row["state"] == "failed"
    assert "not a complete file of samples" in row["error"]


def test_no_study(tmp_path):
    with pytest.raises(EvaluationError, match=r"no study folder: it has no study\.json"):
        collect(tmp_path)


def test_a_cell_without_description_is_named(study):
    (study / "cells" / SPARSE.id / "cell.json").unlink()
    with pytest.raises(EvaluationError, match=SPARSE.id):
        collect(study)


@pytest.mark.slow
def test_a_real_cell(tmp_path):
    """What lmms-eval and the wrapper write today is what is read here."""
    folder = tmp_path / "s"
    reader = lmms_process.checkpoint("tiny-reader", tmp_path)
    full, small = Spec("fullkv", tasks=FULL.tasks), Spec("snapkv", 24, None, {"window": 8}, FULL.tasks)
    write_study(folder, [full, small], 1)
    for spec in (full, small):
        real_cell(folder, spec, reader, tmp_path, None if spec is full else full)
    cells, samples = collect(folder)
    assert cells["state"].tolist() == ["done"] * 4
    for spec in (full, small):
        cell = folder / "cells" / spec.id
        contents = json.loads((cell / json.loads((cell / "status.json").read_text())["results"]).read_text())
        for task in spec.tasks:
            row = row_of(cells, spec, task)
            assert row["score"] == contents["results"][task][f"{row['metric']},none"]
            assert row["ci_low"] <= row["score"] <= row["ci_high"]
            assert row["samples"] == 4
        measured = contents["sparsemm"]["measured"]
        own = cells[cells["cell"] == spec.id]
        for name in ("effective_budget", "kv_bytes_per_sample", "kv_bytes_reserve_per_sample"):
            assert own[name].mean() == pytest.approx(measured[name])
        assert own["effective_budget_min"].min() == measured["effective_budget_min"]
        assert own["kv_bytes_peak_per_call"].max() == measured["kv_bytes_peak_per_call"]
        assert set(own["version_lmms_eval"]) == {contents["sparsemm"]["versions"]["lmms_eval"]}
    own = cells[cells["cell"] == small.id]
    assert own["effective_budget"].tolist() == [24.0, 24.0]
    # A cell's own agreement, over both tasks, which have as many documents.
    assert own["agreement"].mean() == pytest.approx(measured["agreement_identical"])
    assert samples[samples["cell"] == small.id]["identical"].notna().all()
    assert (samples["question"] != "").all()


def real_cell(folder, spec, reader, scratch, reference):
    """Replace an invented cell's results by those of the real command."""
    cell = folder / "cells" / spec.id
    for path in [*cell.rglob("*.jsonl"), *cell.rglob("*_results.json")]:
        path.unlink()
    arguments = {"pretrained": reader, "journal": cell / "journal", "stats_dir": cell / "stats", **spec.knobs}
    if reference is not None:
        arguments |= {"budget": spec.budget, "reference": folder / "cells" / reference.id / "journal"}
    values = {
        "model": f"llava_{spec.method}",
        "model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
        "tasks": ",".join(spec.tasks),
        "limit": "4",
        "batch_size": "4",
        "output_path": str(cell / "lmms"),
    }
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    (found,) = evaluate([*options, "--log_samples"], environment=lmms_process.environment(scratch))
    status = json.loads((cell / "status.json").read_text())
    status["results"] = str(found.path.relative_to(cell))
    (cell / "status.json").write_text(json.dumps(status))
