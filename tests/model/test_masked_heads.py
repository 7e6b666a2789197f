import pytest
import torch

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.head_masking import random_heads
from sparsemm_eval.model.masked_heads import masked_heads
from tests.methods.matrix import MASKING
from tests.tiny_models import FAMILIES, answer, generate, model_of, prompt_of, text_prompt


def test_a_masked_query_attends_evenly():
    model, prompt = model_of("mistral"), text_prompt((30,))
    attention, seen = model.model.layers[1].self_attn, {}

    def note(module, args, kwargs):
        seen["hidden"] = kwargs.get("hidden_states", args[0] if args else None)

    def output(module, args):
        seen["output"] = args[0]

    hooks = [
        attention.register_forward_pre_hook(note, with_kwargs=True),
        attention.o_proj.register_forward_pre_hook(output),
    ]
    with masked_heads(model, [(1, 5)]), torch.inference_mode():
        model(**prompt.inputs)
        values = attention.v_proj(seen["hidden"]).view(30, 2, 8)[:, 5 // 4]
    for hook in hooks:
        hook.remove()
    running_mean = values.cumsum(0) / torch.arange(1, 31)[:, None]
    torch.testing.assert_close(seen["output"].view(30, 8, 8)[:, 5], running_mean)


def test_a_masked_output_is_a_head_cut_out_of_the_projection():
    model, prompt = model_of("mistral"), text_prompt((30,))
    weight = model.model.layers[2].self_attn.o_proj.weight
    with masked_heads(model, [(2, 0), (2, 7)], mode="output"):
        _, masked = answer(model, prompt.inputs, tokens=3)
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, :8] = 0
        weight[:, -8:] = 0
    try:
        _, cut = answer(model, prompt.inputs, tokens=3)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    for a, b in zip(masked, cut, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["query", "output"])
def test_masking_changes_answers_and_leaves_no_trace(family, mode):
    model, prompt = model_of(family), prompt_of(family)
    _, truth = answer(model, prompt.rows[0], tokens=2)
    text = model.config.get_text_config()
    heads = random_heads(text.num_hidden_layers, text.num_attention_heads, 0.5, seed=0)
    with masked_heads(model, heads, mode):
        _, masked = answer(model, prompt.rows[0], tokens=2)
    assert not torch.equal(masked[0], truth[0])
    assert torch.equal(answer(model, prompt.rows[0], tokens=2)[1][0], truth[0])


def test_masking_goes_with_compression():
    model, prompt = model_of("llama"), text_prompt((90,))
    heads = [(0, 1), (2, 3)]
    with masked_heads(model, heads):
        truth = generate(model, prompt.inputs)
        with compress(model, CompressionConfig("snapkv", budget=500)):
            assert torch.equal(generate(model, prompt.inputs), truth)


@pytest.mark.parametrize(("heads", "mode"), [([(9, 0)], "query"), ([(0, 99)], "query"), ([(0, 0)], "zero")])
def test_unknown_heads_and_modes_are_refused(heads, mode):
    with pytest.raises(ConfigError), masked_heads(model_of("llama"), heads, mode):
        pass


@pytest.mark.parametrize("method", MASKING)
def test_a_masking_method_is_a_full_cache_with_masked_heads(method):
    model, prompt = model_of("mistral"), text_prompt((60, 40))
    scores = HeadScores(torch.rand(3, 8, generator=torch.Generator().manual_seed(2)))
    truth = generate(model, prompt.inputs)
    for mode in ("query", "output"):
        config = CompressionConfig(method, mask_ratio=0.3, mask_mode=mode, head_scores=scores)
        with compress(model, config) as session:
            ours = generate(model, prompt.inputs)
            assert len(session.masked) == 7
            assert session.stats.kv_bytes.tolist() == session.stats.kv_bytes_full.tolist()
        with masked_heads(model, config.rule.mask(scores, config), mode):
            expected = generate(model, prompt.inputs)
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, truth)
    assert torch.equal(generate(model, prompt.inputs), truth)
