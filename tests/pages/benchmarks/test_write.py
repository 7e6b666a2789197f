"""The stand-in benchmarks: their rows, and upstream's unchanged tasks scoring right answers on them."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest
from datasets import Image, List, Value

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.tasks import suite_members
from sparsemm_eval.pages.benchmarks.stand_ins import STAND_INS
from sparsemm_eval.pages.benchmarks.write import write_stand_ins
from tests.lmms_process import environment

COUNT = 12
TEXT = Value("string")
BY_NAME = {stand_in.repository.rpartition("/")[2]: stand_in for stand_in in STAND_INS}

# Best scores that upstream's code can give to COUNT documents.
BEST = {
    "docvqa_val": {"anls": 1},
    "ocrbench": {"ocrbench_accuracy": COUNT / 1000},
    "textvqa_val": {"exact_match": 1},
    "chartqa": {"relaxed_overall": 1, "relaxed_human_split": 1, "relaxed_augmented_split": 1},
    "mmbench_en_dev": {"gpt_eval_score": 100},
    "mmbench_en_dev_static": {"gpt_eval_score": 100},
    "vqav2_val": {"exact_match": 1},
    "textcaps_val": {
        f"textcaps_{name}": 1 for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")
    },
}


# As the published data sets have them.
COLUMNS = {
    "DocVQA": "questionId question question_types image docId ucsf_document_id ucsf_document_page_no answers "
    "data_split",
    "OCRBench": "dataset question question_type answer image",
    "textvqa": "image_id question_id question image image_width image_height answers ocr_tokens",
    "ChartQA": "type question answer image",
    "TextCaps": "question_id image_id image caption_id caption_str set_name",
    "MMBench": "index question hint answer A B C D category image source L2-category comment split",
    "VQAv2": "question_type multiple_choice_answer answers image_id answer_type question_id question image",
}
# Those that hold anything but text.
TYPES = {
    "DocVQA": {
        "question_types": List(TEXT),
        "image": Image(),
        "docId": Value("int64"),
        "answers": List(TEXT),
    },
    "OCRBench": {"answer": List(TEXT), "image": Image()},
    "textvqa": {
        **dict.fromkeys(("question_id", "image_width", "image_height"), Value("int32")),
        **dict.fromkeys(("answers", "ocr_tokens"), List(TEXT)),
        "image": Image(),
    },
    "ChartQA": {"image": Image()},
    "TextCaps": {"image": Image(), "caption_id": List(Value("int64")), "caption_str": List(TEXT)},
    "MMBench": {"index": Value("int64"), "image": Image()},
    "VQAv2": {
        "answers": List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")}),
        **dict.fromkeys(("image_id", "question_id"), Value("int64")),
        "image": Image(),
    },
}


def rows_of(name, count=COUNT, seed=5):
    return list(BY_NAME[name].rows(count, seed))


@pytest.mark.parametrize("name", BY_NAME)
def test_rows_have_the_columns_and_are_reproducible(name):
    rows = rows_of(name, 3)
    assert all(list(row) == COLUMNS[name].split() for row in rows)
    assert rows == rows_of(name, 3)
    assert rows[0]["image"] != rows_of(name, 3, seed=6)[0]["image"]


def test_files_have_the_types_of_the_data_sets(tmp_path):
    folders = write_stand_ins(tmp_path, 2)
    for name, folder in zip(BY_NAME, folders, strict=True):
        (file,) = folder.glob("*.parquet")
        data = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
        assert data.features == {column: TYPES[name].get(column, TEXT) for column in COLUMNS[name].split()}


@pytest.mark.parametrize("name", ["DocVQA", "ChartQA", "VQAv2"])
def test_value_questions_name_a_key_and_ask_for_a_short_answer(name):
    for row in rows_of(name):
        answer = row.get("answer") or row["answers"][0]
        value = answer["answer"] if isinstance(answer, dict) else answer
        assert 6 <= len(value) <= 10
        assert any(
            word.strip("?").isupper() and len(word.strip("?")) == 2 for word in row["question"].split()
        )


def test_options_differ_and_hold_the_answer_once():
    letters = set()
    for row in rows_of("MMBench", 24):
        options = [row[letter] for letter in "ABCD"]
        assert len(set(options)) == 4
        letters.add(row["answer"])
    assert letters == set("ABCD")


def test_captions_fit_into_the_tokens_of_the_task():
    assert all(len(row["caption_str"][0]) < 64 for row in rows_of("TextCaps"))


def test_textvqa_questions_survive_lower_casing():
    assert all(row["question"].capitalize() == row["question"] for row in rows_of("textvqa"))


def test_ocrbench_has_all_question_types():
    assert len({row["question_type"] for row in rows_of("OCRBench", 10)}) == 10


def test_a_count_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="count=0"):
        write_stand_ins(tmp_path, 0)
    with pytest.raises(ConfigError, match="seed=-1"):
        write_stand_ins(tmp_path, 1, -1)


def test_other_rows_are_never_taken_from_the_cache(tmp_path, monkeypatch):
    """`datasets` names its cache by the card: it must change with the rows, and only with them."""
    shown, caches = [], []
    for folder, seed in (("one", 5), ("two", 6), ("two", 7), ("three", 5)):
        write_stand_ins(tmp_path / folder, 2, seed)
        monkeypatch.chdir(tmp_path / folder)
        builder = datasets.load_dataset_builder(
            "lmms-lab-encoder/MMBench", "en", cache_dir=tmp_path / "cache"
        )
        builder.download_and_prepare()
        shown.append(builder.as_dataset("dev")["A"][:])
        caches.append(builder.cache_dir)
        assert len(list(Path("lmms-lab-encoder/MMBench").glob("*.parquet"))) == 1
    assert shown[0] == shown[3]
    assert len({tuple(options) for options in shown}) == len(set(caches)) == 3


@pytest.mark.slow
def test_upstream_gives_right_answers_full_marks(tmp_path, monkeypatch):
    folders = write_stand_ins(tmp_path, COUNT)
    assert all("configs:" in (folder / "README.md").read_text() for folder in folders)
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    tasks = [task for task in BEST if task != "textcaps_val" or shutil.which("java")]
    if "textcaps_val" in tasks:
        # The group stands for its seven tasks.
        tasks = ["sparsemm_suite", *(task for task in tasks if task not in suite_members())]
    line = ["--model", "oracle", "--tasks", ",".join(tasks), "--output_path", "out", "--log_samples"]
    (results,) = evaluate(line)
    for task in [task for name in tasks for task in results.tasks_of(name)]:
        scores = results.scores(task)
        assert {name: scores[name] for name in BEST[task]} == pytest.approx(BEST[task]), task
    samples = next((tmp_path / "out").rglob("*_samples_docvqa_val.jsonl"))
    assert len([json.loads(line) for line in samples.read_text().splitlines()]) == COUNT
