"""Captured steps serve later samples: counted on a CPU, where nothing is recorded but the decision to is."""

import pytest
import torch

from sparsemm_eval import compress
from sparsemm_eval.decode import capture
from sparsemm_eval.decode.step import DecodeStep
from tests.decode.test_loop import same
from tests.model.test_session import config_of
from tests.tiny_models import model_of, text_prompt

pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)


@pytest.fixture
def steps_without_a_model(monkeypatch):
    """Steps that choose token 1 and count it, since the interpreter would take a minute for 1,000 tokens."""

    def step(self):
        self.history.index_fill_(1, self.column, 1)
        self.column.add_(1)
        self.cache.arena.length.add_(1)

    monkeypatch.setattr(DecodeStep, "__call__", step)


def answered(session, model, lengths, count):
    """Answer one batch; captures that it took."""
    before = session.captures
    with torch.inference_mode():
        model.generate(**text_prompt(lengths).inputs, max_new_tokens=count, do_sample=False)
    assert session.stats.generated == count - 1
    return session.captures - before


@pytest.mark.parametrize("method", ["fullkv", "snapkv", "sparsemm", "adakv"])
def test_one_for_each_batch_size_whatever_the_lengths(method, steps_without_a_model):
    model = model_of("mistral")
    with compress(model, config_of(method, model), decode="graph", kernel="triton") as session:
        assert answered(session, model, (60,), 64) == 1
        for prompt, count in ((60, 300), (90, 64), (300, 2048), (40, 1024), (900, 2), (60, 2048)):
            assert answered(session, model, (prompt,), count) == 0
        assert answered(session, model, (70, 30), 2048) == 1
        for prompt, count in ((60, 300), (500, 2048)):
            assert answered(session, model, (prompt,), count) == 0
            assert answered(session, model, (prompt, 30), count) == 0


def test_the_next_sample_begins_with_the_room_of_the_last(steps_without_a_model, monkeypatch):
    model = model_of("mistral")
    with compress(model, config_of("snapkv", model), decode="graph", kernel="triton") as session:
        answered(session, model, (60,), 2048)
        monkeypatch.setattr(type(session.arena), "make_room", lambda *_: pytest.fail("more room"))
        answered(session, model, (90,), 2048)


def test_graphs_are_bounded_in_number(steps_without_a_model):
    model = model_of("mistral")
    with compress(model, config_of("snapkv", model), decode="graph", kernel="triton") as session:
        for rows in range(1, capture.MOST_STEPS + 3):
            assert answered(session, model, (40,) * rows, 3) == 1
        assert len(session._loop._steps._ready) == capture.MOST_STEPS
        assert answered(session, model, (40,) * rows, 3) == 0
        assert answered(session, model, (40,), 3) == 1


@pytest.mark.parametrize(
    ("method", "lengths"),
    [
        ("fullkv", (40,)),
        ("sparsemm", (60, 40)),
        pytest.param("snapkv", (60,), marks=pytest.mark.slow),
        pytest.param("adakv", (60, 40), marks=pytest.mark.slow),
    ],
)
def test_the_segment_store_gives_the_tokens_of_the_torch_store(method, lengths, monkeypatch):
    """The Triton kernel in its interpreter, eager and by the loop, with room that grows twice."""
    monkeypatch.setattr("sparsemm_eval.decode.loop.FIRST_ROOM", 3)
    monkeypatch.setattr("sparsemm_eval.cache.segment_store.RESERVE", 3)
    model, inputs = model_of("mistral"), text_prompt(lengths).inputs
    config = config_of(method, model)
    truth = same(model, config, inputs, max_new_tokens=9)
    for decode in ("eager", "graph"):
        with compress(model, config, decode=decode, kernel="triton") as session, torch.inference_mode():
            assert torch.equal(model.generate(**inputs, max_new_tokens=9, do_sample=False), truth)
        with compress(model, config) as plain, torch.inference_mode():
            model.generate(**inputs, max_new_tokens=9, do_sample=False)
        assert torch.equal(session.stats.kept, plain.stats.kept)
