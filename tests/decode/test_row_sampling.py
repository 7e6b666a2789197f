"""Sampling with a seed of each row's own: the right distribution, whatever the neighbours, in every mode."""

import pytest
import torch
from scipy.stats import chisquare, kstest

from sparsemm_eval import compress
from sparsemm_eval.decode.choice import Choice, RowSampling, row_noise
from tests.model.test_session import config_of
from tests.tiny_models import model_of, text_prompt

LENGTHS = (60, 35, 48)


def splitmix(value):
    """The mixing function on whole numbers of 64 bits without a sign."""
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_noise_is_the_named_hash():
    seeds = [0, 1, 2**62 + 12345]
    found = row_noise(torch.tensor(seeds), 7, 5)
    for row, seed in enumerate(seeds):
        for token in range(5):
            mixed = splitmix(splitmix((splitmix(seed) + 7) % 2**64) + token)
            uniform = ((mixed >> 40) + 0.5) / 2**24
            assert found[row, token].double().neg().exp() == pytest.approx(uniform, rel=1e-5)


def test_noise_is_exponential():
    noise = row_noise(torch.arange(40) * 977, torch.tensor([3]), 2000)
    assert kstest(noise.flatten().numpy(), "expon").pvalue > 0.01
    assert noise.min() > 0
    assert abs(torch.corrcoef(torch.stack([noise[0], noise[1], noise[0].roll(1)]))[0, 1:]).max() < 0.1


def test_tokens_are_drawn_by_their_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    choice = Choice(True, temperature=0.8, by_row=True)
    draws = 20_000
    noise = row_noise(torch.arange(draws), 0, len(logits))
    counts = choice.pick(logits.expand(draws, -1), None, noise).bincount(minlength=len(logits))
    expected = (logits / 0.8).softmax(-1) * draws
    assert (
        chisquare(counts.numpy(), expected.double().numpy() * draws / expected.double().sum().item()).pvalue
        > 0.01
    )


def sampled(model, lengths, seeds, decode):
    prompt = text_prompt(lengths)
    draw = RowSampling(
        Choice(True, temperature=2.0, top_k=40, by_row=True),
        torch.tensor(seeds),
        prompt.inputs["input_ids"].shape[1],
    )
    with compress(model, config_of("snapkv", model), decode=decode), torch.inference_mode():
        output = model.generate(
            **prompt.inputs,
            max_new_tokens=20,
            do_sample=False,
            logits_processor=[draw],
            repetition_penalty=1.2,
        )
    return [row[-20:].tolist() for row in output]


@pytest.mark.parametrize("decode", ["eager", "graph"])
def test_a_row_draws_what_it_draws_alone(decode):
    model = model_of("llama")
    together = sampled(model, LENGTHS, (11, 22, 33), decode)
    assert len({tuple(row) for row in together}) == 3
    assert together == sampled(model, LENGTHS, (11, 22, 33), "eager")
    torch.manual_seed(5)  # no generator plays a part
    assert sampled(model, LENGTHS, (11, 22, 33), decode) == together
    assert sampled(model, LENGTHS[:1], (11,), decode)[0] == together[0]
    assert sampled(model, LENGTHS, (11, 22, 34), decode)[:2] == together[:2]
