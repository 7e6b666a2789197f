"""Primary metrics, and which samples may stand for a score."""

import pytest

from sparsemm_eval.study.metrics import PRIMARY, Metric, per_sample, primary


def logged(name, values):
    return [{"doc_id": index, name: value} for index, value in enumerate(values)]


def test_every_benchmark_of_the_paper_and_all_page_tasks_have_one():
    named = {task: metric.name for task, metric in PRIMARY.items()}
    assert named == {
        "docvqa_val": "anls",
        "ocrbench": "ocrbench_accuracy",
        "textvqa_val": "exact_match",
        "chartqa": "relaxed_overall",
        "textcaps_val": "textcaps_CIDEr",
        "mmbench_en_dev_static": "gpt_eval_score",
        "vqav2_val": "exact_match",
        "pages_qa": "exact_match",
        "pages_ocr": "character_accuracy",
        "pages_qa_dev": "exact_match",
        "pages_ocr_dev": "character_accuracy",
        "pages_many_2": "exact_match",
        "pages_many_4": "exact_match",
        "pages_many_8": "exact_match",
        "pages_many_16": "exact_match",
    }


def test_primary_is_not_the_first_one_of_a_known_task():
    assert primary("textcaps_val", {"textcaps_Bleu_4": 0.1, "textcaps_CIDEr": 0.7}).name == "textcaps_CIDEr"
    assert primary("chartqa", {"relaxed_human_split": 0.1}) is None


def test_an_unknown_task_shows_the_first_reported():
    assert primary("mine", {"recall": 0.5, "precision": 0.25}).name == "recall"
    assert primary("mine", {}) is None


def test_shares():
    assert per_sample(PRIMARY["docvqa_val"], logged("anls", [1, 0.5, 0]), 0.5) == [1.0, 0.5, 0.0]


def test_ocrbench_divides_by_a_thousand_whatever_was_asked():
    values = [{"score": 1, "question_type": "x"}, {"score": 0}, {"score": 1}]
    metric = PRIMARY["ocrbench"]
    assert per_sample(metric, logged("ocrbench_accuracy", values), 0.002) == [1.0, 0.0, 1.0]
    assert metric.scale(3) * 2 / 3 == pytest.approx(0.002)
    assert "not the reported" in per_sample(metric, logged("ocrbench_accuracy", values), 2 / 3)


@pytest.mark.parametrize(
    ("prediction", "hit"),
    [("A", 1.0), ("A. a boat", 1.0), ("(A)", 1.0), ("B", 0.0), ("Apple", 0.0), ("", 0.0), ("it is A", 1.0)],
)
def test_mmbench_letters(prediction, hit):
    values = [{"prediction": prediction, "answer": "A"}]
    assert per_sample(PRIMARY["mmbench_en_dev_static"], logged("gpt_eval_score", values), hit * 100) == [hit]


def test_mmbench_hits_that_do_not_make_up_the_score_are_not_used():
    values = [{"prediction": "a boat", "answer": "A"}, {"prediction": "A", "answer": "A"}]
    found = per_sample(PRIMARY["mmbench_en_dev_static"], logged("gpt_eval_score", values), 100.0)
    assert found == "the samples' gpt_eval_score gives 50, not the reported 100"


def test_cider_has_no_samples():
    records = logged("textcaps_CIDEr", [{"pred": "a", "answer": ["b"]}])
    assert "no mean over samples" in per_sample(PRIMARY["textcaps_val"], records, 0.7)


@pytest.mark.parametrize("value", [None, "0.5", float("nan"), {"other": 1}, [1]])
def test_values_that_are_no_numbers(value):
    assert "no mean over samples" in per_sample(Metric("m"), logged("m", [1.0, value]), 0.5)


def test_nothing_logged():
    assert per_sample(Metric("m"), [], 0.5) == "lmms-eval logged no samples"


def test_ocrbench_on_fewer_documents_says_so():
    assert PRIMARY["ocrbench"].caution(1000) is None
    assert PRIMARY["ocrbench"].caution(40) == "divided by 1000 documents although 40 were run"
    assert PRIMARY["docvqa_val"].caution(40) is None
