"""The wrappers under lmms-eval's own evaluator, in this process."""

import re

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager

from sparsemm_eval.errors import ConfigError, JournalError, UnsupportedError
from sparsemm_eval.files import RecordStore
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model_wrappers.answering.samples import SampleError
from tests.model_wrappers.helpers import answers_of
from tests.model_wrappers.task_folder import write_task


@pytest.fixture(scope="module")
def numbered(documents):
    """Documents with an image and a question of their own."""
    pages = [document for document in documents if document["image"] is not None]
    return [{**page, "question": f"{index} {page['question']}"} for index, page in enumerate(pages)]


@pytest.fixture
def evaluate(tmp_path, numbered, build_wrapper):
    """Evaluate a wrapper on a local task whose first two answers are the model's own."""
    own = answers_of(build_wrapper("llava_snapkv", docs=numbered, budget=40, window=8), numbered)
    answers = [text.strip() if index < 2 else "something else" for index, text in enumerate(own)]
    name = write_task(tmp_path, numbered, answers)
    manager = TaskManager("ERROR", include_path=str(tmp_path), include_defaults=False)

    def run(evaluation=None, seen=None, **model_args):
        wrapper = build_wrapper("llava_snapkv", budget=40, window=8, **model_args)
        if seen is not None:
            seen.append(wrapper)
        asked = {"tasks": [name], "task_manager": manager, "bootstrap_iters": 0, **(evaluation or {})}
        return simple_evaluate(wrapper, **asked), name

    return run


def test_one_evaluation_per_results_file(evaluate, tmp_path):
    def tracked(moment, output=tmp_path / "out"):
        tracker = EvaluationTracker(output_path=str(output))
        return {"evaluation_tracker": tracker, "datetime_str": moment}

    wrappers = []
    evaluate(tracked("20260101_000000"), seen=wrappers)
    folder = tmp_path / "out"
    assert wrappers[0].run_record["results_file"] == str(folder / "20260101_000000_results.json")
    assert not list(folder.iterdir())  # lmms-eval's command writes the results, and the claim is gone
    (folder / "20260101_000001_results.claim").touch()
    (folder / "20260101_000002_results.json").touch()
    for second in (1, 2):
        with pytest.raises(ConfigError, match=r"output_path=.* began in the same second"):
            evaluate(tracked(f"20260101_00000{second}"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_path=.*a folder to write to"):
        evaluate(tracked("20260101_000003", tmp_path / "file"))


def test_results_carry_scores_and_measurements(evaluate, numbered):
    results, name = evaluate(batch_size=2)
    assert results["results"][name]["exact_match,none"] == 2 / len(numbered)
    figures = results["throughput"]
    assert figures["avg_nominal_budget"] == 40
    assert figures["avg_effective_budget"] == 40
    assert figures["avg_samples"] == len(numbered)
    assert figures["avg_kv_share"] < 1
    for sample in results["samples"][name]:
        (counts,) = sample["token_counts"]
        assert counts["effective_budget"] == 40
        assert counts["kv_bytes"] < counts["kv_bytes_full"]
        assert 1 <= counts["output_tokens"] <= 5


@pytest.mark.parametrize(
    ("argument", "value", "instead"),
    [
        ("use_cache", "cache", "journal"),
        ("cache_requests", True, "leave it out"),
        ("system_instruction", "Be brief.", "system_prompt"),
        ("apply_chat_template", True, "always applied"),
        ("num_fewshot", 2, "examples would lose their images"),
        ("check_integrity", True, "leave it out"),
    ],
)
def test_what_no_wrapper_can_do_is_refused_before_anything_is_loaded(argument, value, instead, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", None)
    asked = {"tasks": ["x"], "task_manager": TaskManager("ERROR", include_defaults=False), argument: value}
    with pytest.raises(UnsupportedError, match=f"--{argument} .*{instead}"):
        simple_evaluate(model="llava_snapkv", model_args="pretrained=tiny-reader", **asked)


def test_a_wrapper_that_was_made_before_refuses_when_it_is_asked(evaluate, tmp_path):
    folder = str(tmp_path / "cache")
    with pytest.raises(UnsupportedError, match=re.escape(f"--use_cache {folder}")):
        evaluate(evaluation={"use_cache": folder})


def test_the_users_temperature_wins_over_the_tasks(evaluate):
    greedy, name = evaluate()
    sampled, _ = evaluate(evaluation={"gen_kwargs": "temperature=5.0"})
    answers = [[sample["filtered_resps"] for sample in one["samples"][name]] for one in (greedy, sampled)]
    assert answers[0] != answers[1]


def test_a_journal_has_one_writer_after_an_evaluation_too(evaluate, tmp_path):
    """lmms-eval changes how file locks behave in its process."""
    evaluate()
    words = {"unit": "answers", "elsewhere": "choose another folder"}
    with (
        RecordStore(tmp_path / "journal", "answers", **words),
        pytest.raises(JournalError, match=r"in use by process \d+ on"),
    ):
        RecordStore(tmp_path / "journal", "answers", **words)


def test_a_skipped_sample_is_no_part_of_the_score(evaluate, numbered, monkeypatch):
    monkeypatch.setenv("BROKEN_QUESTION", numbered[0]["question"])
    results, name = evaluate(on_error="skip", max_skipped=0.5)
    # One of the two right answers is gone, and so is its sample: neither right nor wrong.
    assert results["results"][name]["exact_match,none"] == 1 / (len(numbered) - 1)
    assert sorted(sample["doc_id"] for sample in results["samples"][name]) == list(range(1, len(numbered)))
    assert results["throughput"]["avg_samples_skipped"] == 1


def test_a_failing_sample_fails_the_evaluation(evaluate, numbered, monkeypatch):
    monkeypatch.setenv("BROKEN_QUESTION", numbered[3]["question"])
    with pytest.raises(SampleError, match=r"^local_pages/3: .*image file is truncated"):
        evaluate()
