"""Pruning of image tokens against references that drop nothing, but mask keys."""

from contextlib import contextmanager

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.methods import Method
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.model.families.registry import family_of
from tests.methods import matrix
from tests.methods.matrix import EVICTING, registered
from tests.pruning.test_divprune import by_loops
from tests.tiny_models import IMAGE_FAMILIES, answer, model_of, prompt_of, text_prompt

BATCH = (150, 90, 40)
SNAPKV = {"budget": 40, "window": 8}
METHODS = {"fullkv": {}, "snapkv": SNAPKV}
NAME = "masked_keys"
CASES = [
    (family, prune)
    for family in IMAGE_FAMILIES
    for prune in ("fastv", "divprune", "downsample")
    if prune != "downsample" or "qwen" not in family
]


def config_of(prune, method="fullkv", **knobs):
    return CompressionConfig(method, prune=prune, **METHODS[method], **knobs)


def generate(model, inputs, tokens=8, **more):
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **more)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])  # nothing left out
    return output[:, inputs["input_ids"].shape[1] :]


def images_of(model, inputs):
    """Positions of the image tokens of a batch-1 prompt."""
    return (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()


def count_of(images, share):
    return max(1, round(share * len(images)))


class MaskedKeys:
    """Attention without a cache whose layers from ``first`` on do not see some keys; batch 1."""

    def __init__(self, images, share, first, dropped=None):
        self.images, self.share, self.first, self.dropped = images, share, first, dropped
        self.prompt = None

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        group, length = query.shape[1] // key.shape[1], query.shape[2]
        self.prompt = self.prompt or length
        key, value = (part.repeat_interleave(group, 1) for part in (key, value))
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if module.layer_idx >= self.first:
            seen[:, self.dropped] = False
        scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
        weights = scores.softmax(-1)
        if self.dropped is None and module.layer_idx == self.first - 1:
            rank = weights[0, :, self.prompt - 1].mean(0).tolist()
            best = sorted(self.images, key=lambda i: -rank[i])[: count_of(self.images, self.share)]
            self.dropped = sorted(set(self.images) - set(best))
        # rows that see nothing are of tokens that were dropped
        return (weights.nan_to_num(0.0) @ value).transpose(1, 2), None


@contextmanager
def attention_of(model, function):
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def naive_logits(model, inputs, attention, tokens):
    """Logits of every step, the whole prompt computed anew for each one."""
    inputs, logits = dict(inputs), []
    closes_up = attention.first == 0 and not hasattr(model.base_model, "get_rope_index")
    with attention_of(model, attention), torch.inference_mode():
        for _ in range(tokens):
            if closes_up:
                kept = torch.ones_like(inputs["input_ids"])
                kept[:, attention.dropped] = 0
                inputs["position_ids"] = (kept.cumsum(-1) - 1).clamp(min=0)
            logits.append(model(**inputs, use_cache=False).logits[:, -1])
            new = {"input_ids": logits[-1].argmax(-1, keepdim=True)}
            new["attention_mask"] = torch.ones_like(new["input_ids"])
            new["mm_token_type_ids"] = torch.zeros_like(new["input_ids"])
            for name in new.keys() & inputs.keys():
                inputs[name] = torch.cat([inputs[name], new[name].to(inputs[name].dtype)], 1)
    return logits


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_fastv_is_masking_keys_in_the_layers_behind(family, layer, share):
    model, inputs = model_of(family), prompt_of(family).rows[0]
    naive = MaskedKeys(images_of(model, inputs), share, layer)
    truth = naive_logits(model, inputs, naive, tokens=5)
    with compress(model, config_of("fastv", image_share=share, prune_layer=layer)) as session:
        _, ours = answer(model, inputs, tokens=5)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    length = inputs["input_ids"].shape[1]
    fewer = length - len(naive.dropped)
    assert session.stats.layer_lengths[:, 0].tolist() == [length] * layer + [fewer] * (6 - layer)
    assert torch.equal(
        session.stats.kept, session.stats.layer_lengths[..., None].expand_as(session.stats.kept)
    )


def features_of(model, inputs):
    given = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}
    with torch.inference_mode():
        return torch.cat(list(model.base_model.get_image_features(**given, return_dict=True).pooler_output))


@pytest.mark.parametrize(("family", "prune"), [case for case in CASES if case[1] != "fastv"])
def test_pruning_before_the_text_model_is_masking_keys_in_all_layers(family, prune):
    model, inputs = model_of(family), prompt_of(family).rows[0]
    images = images_of(model, inputs)
    if prune == "divprune":
        kept = by_loops(features_of(model, inputs).double().tolist(), count_of(images, 0.3))
    else:
        kept = range(family_of(model.config).thumbnail(model.config))
    dropped = sorted(set(images) - {images[i] for i in kept})
    truth = naive_logits(model, inputs, MaskedKeys(images, 0.3, 0, dropped), tokens=5)
    with compress(model, config_of(prune, image_share=0.3)) as session:
        _, ours = answer(model, inputs, tokens=5)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert session.stats.pruned_tokens.tolist() == [len(dropped)]
    assert session.stats.prompt_lengths.tolist() == [inputs["input_ids"].shape[1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "prune"), CASES)
def test_rows_of_a_batch_answer_as_alone(family, prune, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    config, found = config_of(prune, method), {}
    for decode in ("eager", "graph"):
        with compress(model, config, decode=decode) as session:
            found[decode] = together = generate(model, prompt.inputs)
            stats = session.stats
            for row, inputs in enumerate(prompt.rows):
                assert torch.equal(generate(model, inputs)[0], together[row])
                assert torch.equal(session.stats.kept[:, 0], stats.kept[:, row])
                assert session.stats.layer_lengths[:, 0].tolist() == stats.layer_lengths[:, row].tolist()
                assert session.stats.prefill_flops.tolist() == [stats.prefill_flops[row]]
    assert torch.equal(found["eager"], found["graph"])
    with compress(model, CompressionConfig(method, **METHODS[method])) as session:
        generate(model, prompt.inputs)
    assert session.stats.prompt_lengths.tolist() == stats.prompt_lengths.tolist()
    assert session.stats.kv_bytes_full.tolist() == stats.kv_bytes_full.tolist()
    assert bool((stats.prefill_flops < session.stats.prefill_flops).all())
    assert bool((stats.pruned_tokens > 0).all())


# Compiling takes long: of every way of pruning, the first family with the fast tests.
FUSED = [
    pytest.param(*case, "fused", marks=() if case[0] == "tiny-reader" else pytest.mark.slow) for case in CASES
]


@pytest.mark.parametrize(("family", "prune", "decode"), [*((*case, "compile") for case in CASES), *FUSED])
def test_every_mode_decodes_alike(family, prune, decode):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    for method in METHODS:
        with compress(model, config_of(prune, method)) as session:
            truth, stats = generate(model, prompt.inputs), session.stats
        with compress(model, config_of(prune, method), decode=decode) as session:
            assert torch.equal(generate(model, prompt.inputs), truth)
            assert torch.equal(session.stats.kept, stats.kept)
            assert session.stats.generated == stats.generated == 7


def test_bytes_and_budget_are_what_is_held():
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader", BATCH)
    with compress(model, config_of("fastv", image_share=0.25)) as session:
        generate(model, prompt.inputs)
    stats = session.stats
    images = (prompt.inputs["input_ids"] == model.config.image_token_id).sum(-1).tolist()
    lengths = prompt.inputs["attention_mask"].sum(-1).tolist()
    fewer = [n - i + count_of(range(i), 0.25) for n, i in zip(lengths, images, strict=True)]
    held = [2 * n + 4 * m for n, m in zip(lengths, fewer, strict=True)]  # layers 0 and 1, then four layers
    kv_heads, entry = stats.kept.shape[2], int(stats.entry_bytes[0])
    assert stats.kv_bytes.tolist() == [n * kv_heads * entry for n in held]
    assert stats.kv_bytes_full.tolist() == [6 * n * kv_heads * entry for n in lengths]
    assert stats.effective_budgets.tolist() == pytest.approx([n / 6 for n in held])
    assert stats.kv_bytes_end.tolist() == [(n + 6 * 7) * kv_heads * entry for n in held]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "prune"), CASES)
def test_a_manual_decode_loop_equals_generate(family, prune, method):
    model, prompt = model_of(family), prompt_of(family)
    inputs = prompt.rows[0]
    length = inputs["input_ids"].shape[1]
    with compress(model, config_of(prune, method)) as session, torch.inference_mode():
        expected = generate(model, inputs)
        output = model(**inputs)
        cache, tokens = output.past_key_values, []
        for step in range(8):
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            assert {layer.get_seq_length() for layer in cache.layers} == {length + step}
            output = model(input_ids=tokens[-1], past_key_values=cache)
        assert torch.equal(torch.cat(tokens, 1), expected)
        assert cache.stats().kept.tolist() == session.stats.kept.tolist()


@pytest.mark.parametrize(("family", "prune"), CASES)
def test_all_image_tokens_are_no_pruning(family, prune):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    truth = generate(model, prompt.inputs)
    for inputs, expected in ((prompt.inputs, truth), (words(model, (60, 35)).inputs, None)):
        expected = generate(model, inputs) if expected is None else expected
        with compress(model, config_of(prune, image_share=1)) as session:
            assert torch.equal(generate(model, inputs), expected)
        assert session.stats.pruned_tokens.tolist() == [0] * len(expected)


def words(model, lengths):
    return text_prompt(lengths, vocabulary=model.config.get_text_config().vocab_size)


@pytest.mark.parametrize(("family", "prune"), CASES)
def test_the_model_is_as_before_after_an_exception(family, prune):
    model, prompt = model_of(family), prompt_of(family)
    truth = generate(model, prompt.rows[0])

    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return hooks, "generate" in vars(model)

    before = state()

    def fail_inside():
        with compress(model, config_of(prune)):
            with pytest.raises(UnsupportedError, match="output_hidden_states"):
                generate(model, prompt.rows[0], output_hidden_states=True, return_dict_in_generate=True)
            # the failed call's plan is not taken for another prompt's
            with torch.inference_mode():
                model(**words(model, (60,)).inputs)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert state() == before
    assert torch.equal(generate(model, prompt.rows[0]), truth)


def test_a_method_sees_each_layers_own_prompt():
    model, prompt, seen = model_of("tiny-reader"), prompt_of("tiny-reader", BATCH), []

    def note(view):
        seen.append(view)
        return torch.rand(view.batch, view.kv_heads, view.length)

    method = Method("needy", "Needy", score=note, allocate=uniform, needs=("images",))
    with (
        registered(method),
        compress(model, CompressionConfig("needy", budget=24, window=8, prune="fastv")) as session,
    ):
        generate(model, prompt.inputs)
    for view in seen:
        assert view.images.shape == (3, view.length)
        assert view.lengths.tolist() == session.stats.layer_lengths[view.layer].tolist()
    whole, pruned = seen[1], seen[2]
    assert pruned.length < whole.length
    assert pruned.images.sum() * 2 == pytest.approx(whole.images.sum(), abs=2)


@pytest.mark.parametrize("surplus", ["drop", "redistribute"])
@pytest.mark.parametrize("method", EVICTING)
def test_layers_of_different_length_share_one_budget(method, surplus):
    model, prompt = model_of("tiny-reader-mistral"), prompt_of("tiny-reader-mistral", BATCH)
    table = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) ** 6
    given = {"window": 8, "surplus": surplus, "prune": "fastv"}
    for budget in (100, 160):
        config = matrix.config_of(method, HeadScores(table), budget=budget, **given)
        with compress(model, config) as session:
            together = generate(model, prompt.inputs)
            stats = session.stats
            for row, inputs in enumerate(prompt.rows):
                assert torch.equal(generate(model, inputs)[0], together[row])
                assert torch.equal(session.stats.kept[:, 0], stats.kept[:, row])
        held, whole = stats.effective_budgets.tolist(), stats.layer_lengths.double().mean(0).tolist()
        assert stats.pruned_tokens.tolist() == [100, 168, 132]
        for ours, fits in zip(held, whole, strict=True):
            if fits <= budget:
                assert ours == pytest.approx(fits)
            elif fits > budget + config.window:  # some published rules do not cut what is barely too long
                assert ours <= budget + 2  # rounded by layer
        if config.knobs.get("surplus") == "redistribute" and budget == 100:  # every layer can hold as many
            assert held == pytest.approx([100.0] * 3, abs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.ones(1, 9)}, "labels"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"attention_mask": {}}, "attention_mask"),
    ],
)
@pytest.mark.parametrize("prune", ["fastv", "divprune"])
def test_forward_passes_that_need_all_tokens_are_refused(prune, arguments, message):
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader")
    with (
        compress(model, config_of(prune)),
        torch.inference_mode(),
        pytest.raises(UnsupportedError, match=message),
    ):
        model(**{**prompt.rows[0], **arguments})


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(UnsupportedError, match="prune=fastv: LlamaForCausalLM reads no images"):
        compress(model_of("llama"), config_of("fastv"))
    with pytest.raises(UnsupportedError, match=r"prune=downsample: Qwen2VL.*max_pixels"):
        compress(model_of("tiny-reader-qwen2vl"), config_of("downsample"))
    with pytest.raises(ConfigError, match=r"prune_layer=6.*an integer in \[1, 5\]"):
        compress(model_of("tiny-reader"), config_of("fastv", prune_layer=6))
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader")
    with compress(model, config_of("fastv")), pytest.raises(UnsupportedError, match="num_return_sequences=2"):
        generate(model, prompt.rows[0], num_return_sequences=2)
    with compress(model, config_of("fastv")), pytest.raises(UnsupportedError, match="input_ids=None"):
        model.generate(inputs_embeds=torch.zeros(1, 9, 64))


def test_settings_that_look_back_see_the_whole_prompt():
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader", BATCH)
    widths = []

    def stop(tokens, scores, **kwargs):
        widths.append(tokens.shape[1])
        return torch.zeros(len(tokens), dtype=torch.bool)

    for decode in ("eager", "graph"):
        with compress(model, config_of("divprune"), decode=decode):
            generate(model, prompt.inputs, tokens=3, stopping_criteria=[stop])
        width = prompt.inputs["input_ids"].shape[1]
        assert [one for one in widths if one > width] == [width + 1, width + 2, width + 3]
        widths.clear()
