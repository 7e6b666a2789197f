"""How many marked positions of a prompt every KV head keeps, against loops over what it keeps."""

import pytest
import torch

from sparsemm_eval import compress
from sparsemm_eval.errors import ConfigError
from tests.methods.matrix import EVICTING
from tests.model.naive_attention import NaiveAttention, naive_attention
from tests.model.test_session import BATCH, config_of, known_to_the_cache, scores_of
from tests.tiny_models import generate, model_of, prompt_of


def marked(inputs, seed=0):
    """Some positions of every prompt, none of them padding; of several prompts, the last has none."""
    mask = inputs["attention_mask"].bool()
    chosen = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    chosen[-1] &= len(mask) == 1
    return mask & chosen


def counted(model, config, inputs, evidence, **how):
    with compress(model, config, **how) as session:
        session.evidence = evidence
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return session.stats


@pytest.mark.parametrize("family", ["llama", "mistral", "tiny-reader-qwen2vl"])
@pytest.mark.parametrize("method", EVICTING)
def test_counts_are_those_of_loops(family, method):
    model, [inputs] = model_of(family), prompt_of(family).rows
    config, evidence = config_of(method, model), marked(inputs)
    with compress(model, config) as session, known_to_the_cache(session) as known:
        session.evidence = evidence
        generate(model, inputs, tokens=3)
    stats, naive = session.stats, NaiveAttention(config, scores_of(model).table.tolist(), **known)
    with naive_attention(model, naive):
        generate(model, inputs, tokens=2)
    expected = [
        [sum(bool(evidence[0, position]) for position in head) for head in layer] for layer in naive.kept
    ]
    assert stats.evidence_kept[:, 0].tolist() == expected
    assert stats.evidence_tokens.tolist() == [int(evidence.sum())]
    assert 0 < stats.evidence_kept.sum() < stats.evidence_tokens[0] * stats.kept[:, 0].numel()


@pytest.mark.parametrize("family", ["llama", "tiny-reader-mistral"])
@pytest.mark.parametrize("method", ["fullkv", "snapkv", "sparsemm", "adakv"])
def test_rows_of_a_batch_count_as_alone(family, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    config = config_of(method, model, budget=44)  # more than the shortest text prompt
    evidence = marked(prompt.inputs)
    together = counted(model, config, prompt.inputs, evidence)
    for row, inputs in enumerate(prompt.rows):
        own = evidence[row, prompt.inputs["attention_mask"][row].bool()][None]
        alone = counted(model, config, inputs, own)
        assert torch.equal(alone.evidence_kept[:, 0], together.evidence_kept[:, row])
        assert alone.evidence_tokens[0] == together.evidence_tokens[row]
    assert together.evidence_tokens[-1] == together.evidence_kept[:, -1].sum() == 0
    if method == "fullkv":
        assert (together.evidence_kept == together.evidence_tokens[:, None]).all()


@pytest.mark.parametrize("lengths", [(150,), BATCH])
@pytest.mark.parametrize(
    "method", ["sparsemm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adakv", "fullkv"))]
)
def test_modes_and_kernels_count_alike(method, lengths):
    model, prompt = model_of("llama"), prompt_of("llama", lengths)
    config, evidence = config_of(method, model), marked(prompt.inputs)
    truth = counted(model, config, prompt.inputs, evidence)
    for decode in ("compile", "graph", "fused"):
        stats = counted(model, config, prompt.inputs, evidence, decode=decode)
        assert torch.equal(stats.evidence_kept, truth.evidence_kept), decode
    pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)
    stats = counted(model, config, prompt.inputs, evidence, kernel="triton")
    assert torch.equal(stats.evidence_kept, truth.evidence_kept)


def test_nothing_is_counted_where_nobody_asks_and_wrong_shapes_are_refused():
    model, prompt = model_of("llama"), prompt_of("llama", (150,))
    config = config_of("snapkv", model)
    stats = counted(model, config, prompt.inputs, None)
    assert stats.evidence_kept is stats.evidence_tokens is None
    with pytest.raises(ConfigError, match=r"evidence=\(1, 149\).*bool \[B, N\], here \(1, 150\)"):
        counted(model, config, prompt.inputs, marked(prompt.inputs)[:, 1:])
