"""The probe against eager attention matrices."""

from __future__ import annotations

import pytest
import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scoring import probe
from sparsemm_eval.heads.scoring.probe import attention_rows, strongest_keys, top_keys
from tests.tiny_models import FAMILIES, TEXT_CONFIGS, model_of, prompt_of


def inputs_of(family):
    inputs = dict(prompt_of(family).rows[0] if family not in TEXT_CONFIGS else prompt_of(family).inputs)
    inputs.pop("attention_mask")
    return inputs


def eager_attentions(model, inputs):
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return torch.stack(model(**inputs, use_cache=False, output_attentions=True).attentions)
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_eager_argmax(family):
    model, inputs = model_of(family), inputs_of(family)
    length = inputs["input_ids"].shape[1]
    queries = torch.tensor([[length - 1, 40, 7, length // 2]])
    attentions = eager_attentions(model, inputs)  # [L, B, H, N, N]
    found, _ = strongest_keys(model, inputs, queries, topk=3)
    expected = attentions[:, :, :, queries[0]].topk(3, dim=-1).indices
    assert found.shape == expected.shape
    assert torch.equal(found, expected)
    assert torch.equal(strongest_keys(model, inputs, queries)[0][..., 0], expected[..., 0])


def test_rows_have_positions_of_their_own_and_ignore_padding_on_the_right():
    model = model_of("llama")
    ids = torch.randint(1, 97, (2, 50), generator=torch.Generator().manual_seed(3))
    ids[1, 30:] = 0
    queries = torch.tensor([[49, 20], [29, 29]])
    found, _ = strongest_keys(model, {"input_ids": ids}, queries)
    alone, _ = strongest_keys(model, {"input_ids": ids[1:, :30]}, queries[1:])
    assert torch.equal(found[:, 1:], alone)
    assert int(found[:, 1].max()) <= 29


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_eager_attention(family):
    model, inputs = model_of(family), inputs_of(family)
    queries = torch.tensor([[inputs["input_ids"].shape[1] - 1, 3, 40]])
    expected = eager_attentions(model, inputs)[:, :, :, queries[0]]
    torch.testing.assert_close(attention_rows(model, inputs, queries), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("limit", [1, 100, 5000])
def test_chunks_do_not_change_the_result(limit, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 6, 37, 8, generator=generator)
    key = torch.randn(2, 3, 37, 8, generator=generator)
    queries = torch.tensor([[36, 5, 0], [20, 2, 19]])
    whole = top_keys(query, key, queries, 4)
    monkeypatch.setattr(probe, "MAX_LOGITS", limit)
    assert torch.equal(top_keys(query, key, queries, 4), whole)
    # the first position sees one key, the third three
    assert (whole[0, :, 2, 1:] == -1).all()
    assert (whole[0, :, 2, 0] == 0).all()
    assert (whole[1, :, 1, 3] == -1).all()
    assert (whole[1, :, 1, :3] >= 0).all()


def test_the_model_is_as_before_also_after_an_exception():
    model = model_of("mistral")
    ids = torch.ones(1, 9, dtype=torch.long)
    before = model(input_ids=ids).logits

    def fail(*args):
        raise RuntimeError("stop here")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        strongest_keys(model, {"input_ids": ids}, torch.tensor([[3]]))
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
    assert all(not layer.self_attn._forward_pre_hooks for layer in model.model.layers)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"queries": torch.tensor([[9]])}, "queries"),
        ({"queries": torch.tensor([[-1]])}, "queries"),
        ({"queries": torch.tensor([3])}, "queries"),
        ({"topk": 0}, "topk"),
        ({"topk": 10}, "topk"),
        ({"inputs": {"attention_mask": torch.ones(1, 9)}}, "attention_mask"),
    ],
)
def test_wrong_arguments_are_refused(changes, named):
    inputs = {"input_ids": torch.ones(1, 9, dtype=torch.long), **changes.get("inputs", {})}
    with pytest.raises(ConfigError, match=named):
        strongest_keys(
            model_of("llama"), inputs, changes.get("queries", torch.tensor([[3]])), changes.get("topk", 1)
        )
