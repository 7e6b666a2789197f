import pytest
from PIL import Image

from sparsemm_eval.model_wrappers.answering import failures
from sparsemm_eval.model_wrappers.answering.failures import TooManySkippedError, ending_all_ranks
from sparsemm_eval.model_wrappers.answering.samples import SampleError
from tests.model_wrappers.helpers import TASK, make_requests


@pytest.fixture
def damaged(documents):
    """Documents of which the second has no readable image."""
    return [documents[0], {"image": "gone.png", "question": "?"}, *documents[2:4]]


def test_a_failing_sample_stops_the_run(build_wrapper, damaged):
    wrapper = build_wrapper(docs=damaged, batch_size=2)
    with pytest.raises(SampleError, match=f"^{TASK}/1: "):
        wrapper.generate_until(make_requests(damaged, chat=True))


def test_a_skipped_sample_is_named_and_loses_its_document(build_wrapper, damaged):
    wrapper = build_wrapper(docs=damaged, on_error="skip", max_skipped=0.5, batch_size=2)
    requests = make_requests(damaged, chat=True)
    results = wrapper.generate_until(requests)
    assert [request.doc_id for request in requests] == [0, "skipped:1", 2, 3]
    assert [result.token_counts is None for result in results] == [False, True, False, False]
    wrapper.clean()
    assert wrapper.run_record["measured"]["samples"] == 3
    assert wrapper.run_record["measured"]["samples_skipped"] == 1
    (reason,) = wrapper.run_record["skipped"].values()
    assert reason.startswith(f"{TASK}/1: ")


def test_other_answers_are_those_of_a_run_without_the_sample(build_wrapper, damaged):
    skipping = build_wrapper(docs=damaged, on_error="skip", max_skipped=0.5)
    texts = [result.text for result in skipping.generate_until(make_requests(damaged, chat=True))]
    good = [damaged[0], *damaged[2:]]
    alone = build_wrapper(docs=good)
    assert [result.text for result in alone.generate_until(make_requests(good, chat=True))] == [
        texts[0],
        *texts[2:],
    ]


def test_a_generation_error_is_skipped_alone(build_wrapper, documents, monkeypatch):
    wrapper = build_wrapper(on_error="skip", max_skipped=0.5, batch_size=3)
    monkeypatch.setattr(wrapper.model, "prepare_inputs_for_generation", _failing_without_image(wrapper.model))
    requests = make_requests(documents, chat=True)
    wrapper.generate_until(requests)
    assert [str(request.doc_id).startswith("skipped") for request in requests] == [False] * 5 + [True]


def _failing_without_image(model):
    original = model.prepare_inputs_for_generation

    def prepare(input_ids, **kwargs):
        if ((input_ids == model.config.image_token_id).sum(-1) == 0).any():
            raise RuntimeError("no image here")
        return original(input_ids, **kwargs)

    return prepare


def test_too_many_skipped_samples_fail_the_run(build_wrapper, damaged):
    wrapper = build_wrapper(docs=damaged, on_error="skip", max_skipped=0.2)
    with pytest.raises(TooManySkippedError, match=r"1 of 4 samples were skipped.*pages/1"):
        wrapper.generate_until(make_requests(damaged, chat=True))


def test_empty_answers_are_counted_and_named(build_wrapper, monkeypatch):
    page = [{"image": Image.new("RGB", (128, 128)), "question": "?"}]
    wrapper = build_wrapper(docs=page)
    monkeypatch.setattr(type(wrapper.tokenizer), "decode", lambda self, tokens, **kwargs: " ")
    wrapper.generate_until(make_requests(page, chat=True))
    wrapper.clean()
    assert wrapper.run_record["measured"]["empty_answers"] == 1
    assert wrapper.run_record["empty"] == [f"{TASK}/0"]


def test_an_answer_past_the_context_is_counted_and_warned_of(build_wrapper, log):
    page = [{"image": Image.new("RGB", (128, 128)), "question": "?"}]
    probe = build_wrapper(docs=page)
    probe.generate_until(make_requests(page, chat=True, gen_kwargs={"max_new_tokens": 1}))
    probe.clean()
    prompt = int(probe.run_record["measured"]["prompt_tokens_per_sample"])
    wrapper = build_wrapper(docs=page)
    wrapper._report.totals.context = prompt + 2
    wrapper.generate_until(make_requests(page, chat=True, gen_kwargs={"max_new_tokens": 3}))
    wrapper.clean()
    assert wrapper.run_record["measured"]["answers_past_context"] == 1
    assert any("1 of 1 answers run past the model's context" in message for message in log)


def test_one_process_raises():
    with pytest.raises(ValueError, match="mine"), ending_all_ranks():
        raise ValueError("mine")


def test_one_of_several_processes_exits_with_its_error(monkeypatch, capsys, log):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(failures.os, "_exit", leave)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left, ending_all_ranks():
        raise ValueError("mine")
    assert left.value.code == 1
    assert "rank 1 of 2 failed and ends the run: mine" in log
    assert "Traceback" in capsys.readouterr().err
