"""How many kernels a decode step launches per layer: counted, not timed."""

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from transformers import AutoModelForCausalLM, LlamaConfig

from sparsemm_eval import compress
from sparsemm_eval.decode.step import forward_of
from tests.model.test_session import config_of

pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)
MOST_PER_LAYER = 14
KERNEL = re.compile(
    r"^\s+(?:\w+ = )?(?:cpp_fused\w*\(|extern_kernels\.\w+\(|torch\.ops\.\w+\.\w+)", re.MULTILINE
)


def llama(layers):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=97,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def compiled_kernels(layers):
    """Kernel calls in Inductor's code of one fused step, and the operators of ours among them."""
    model = llama(layers)
    torch._dynamo.reset()
    session = compress(model, config_of("snapkv", model), decode="fused", kernel="triton")
    # Inductor joins what is concatenated with other kernels on a GPU by itself, on a CPU when told to
    fuse = torch._inductor.config.patch(force_pointwise_cat=True)
    with session, torch.inference_mode(), fuse:
        cache = session.new_cache(4)
        ids = torch.randint(1, 97, (1, 60))
        model(input_ids=ids, past_key_values=cache)
        step = (ids[:, -1:], torch.full((1, 1), 60), cache)
        _, code = run_and_get_code(forward_of(model, compiled=True), *step)
    calls = KERNEL.findall(code[0].split("def call(")[1].split("def get_args")[0])
    return len(calls), sum("sparsemm" in call for call in calls)


def test_a_fused_step_launches_few_kernels_per_layer():
    (two, ours), (four, more) = compiled_kernels(2), compiled_kernels(4)
    assert (ours, more) == (2, 4)
    per_layer = (four - two) / 2 + 1  # our operator is two kernels
    assert 9 < per_layer <= MOST_PER_LAYER
