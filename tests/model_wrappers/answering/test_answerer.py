import pytest
import torch
from PIL import Image

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model_wrappers.answering.answerer import (
    PromptTooLongError,
    answer_in_parts,
    as_sample_error,
    is_out_of_memory,
)
from sparsemm_eval.model_wrappers.answering.generation import GenerationSettings
from sparsemm_eval.model_wrappers.answering.samples import Request, Sample
from tests.model_wrappers.helpers import TASK, answers_of


def samples(count):
    settings = GenerationSettings((), 5)
    return [
        Sample(Request(i, TASK, i, "test", 0, "", None, settings), "", (), 1, str(i)) for i in range(count)
    ]


def run(count, answer):
    sizes = []

    def counting(part):
        sizes.append(len(part))
        return answer(part)

    outcomes = list(answer_in_parts(samples(count), counting))
    return sizes, outcomes


def names(outcomes):
    return [sample.request.doc_id for part, _ in outcomes for sample in part]


def test_a_batch_that_fits_runs_once():
    sizes, outcomes = run(5, lambda part: list(part))
    assert sizes == [5]
    assert names(outcomes) == [0, 1, 2, 3, 4]


def test_out_of_memory_halves_the_batch_and_keeps_the_order(log):
    def answer(part):
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(part)

    sizes, outcomes = run(7, answer)
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    assert names(outcomes) == list(range(7))
    assert not any(isinstance(outcome, Exception) for _, outcome in outcomes)
    assert "out of memory with 7 samples in a batch: going on with half as many" in log


def test_a_failure_is_traced_to_its_sample():
    def answer(part):
        if any(sample.request.doc_id == 2 for sample in part):
            raise ValueError("bad sample")
        return list(part)

    sizes, outcomes = run(4, answer)
    assert sizes == [4, 1, 1, 1, 1]
    failed = [part[0].request.doc_id for part, outcome in outcomes if isinstance(outcome, Exception)]
    assert failed == [2]
    error = as_sample_error(outcomes[2][0][0], outcomes[2][1])
    assert str(error) == f"{TASK}/2: no answer could be generated (ValueError: bad sample)"


def test_one_sample_without_memory_is_a_failure():
    def answer(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sizes, outcomes = run(2, answer)
    assert sizes == [2, 1, 1]
    assert all(is_out_of_memory(outcome) for _, outcome in outcomes)


def test_what_cannot_be_supported_stops_at_once():
    def answer(part):
        raise UnsupportedError("beam search")

    with pytest.raises(UnsupportedError):
        run(2, answer)


def test_kinds_of_memory_errors():
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize(("name", "remedy"), [("llava_fullkv", ""), ("qwen2vl_fullkv", ".*max_pixels, or")])
def test_a_prompt_longer_than_the_context_is_an_error_with_a_remedy_that_exists(name, remedy, build_wrapper):
    wrapper = build_wrapper(name)
    wrapper.config.text_config.max_position_embeddings = 100
    page = {"image": Image.new("RGB", (128, 128)), "question": "short?"}
    message = rf"^{TASK}/0: its prompt has \d+ tokens.*ends at 100:{remedy} leave such samples out"
    with pytest.raises(PromptTooLongError, match=message):
        answers_of(wrapper, [page])
