from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.model_wrappers.answering.generation import GenerationSettings
from sparsemm_eval.model_wrappers.answering.loop import WINDOW, batches, windows
from sparsemm_eval.model_wrappers.answering.samples import Request, Sample


def request(index, task="a", tokens=5):
    return Request(index, task, index, "test", 0, "", None, GenerationSettings((), tokens))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), max_size=80), st.integers(1, 3))
def test_windows_hold_every_request_once_and_never_mix(kinds, batch_size):
    requests = [request(i, task, tokens) for i, (task, tokens) in enumerate(kinds)]
    found = list(windows(requests, batch_size))
    assert sorted(r.index for window in found for r in window) == list(range(len(requests)))
    for window in found:
        assert len({(r.task, r.settings) for r in window}) == 1
        assert len(window) <= WINDOW * batch_size
        assert [r.index for r in window] == sorted(r.index for r in window)


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 7))
def test_batches_are_full_and_sorted_by_length(lengths, batch_size):
    samples = [Sample(request(i), "", (), length, str(i)) for i, length in enumerate(lengths)]
    found = list(batches(samples, batch_size))
    flat = [sample for batch in found for sample in batch]
    assert sorted(sample.digest for sample in flat) == sorted(sample.digest for sample in samples)
    assert [sample.length for sample in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert list(batches(samples[::-1], batch_size)) == found
