"""What a prefill reads back from the device that keys lie on: counted on a CPU, where reading is free."""

from dataclasses import replace

import pytest
import torch

from sparsemm_eval import HeadScores
from sparsemm_eval.bench.method_costs import OnDevice, counted_reads
from sparsemm_eval.methods.base import Method, PromptView
from sparsemm_eval.methods.keep import keep_layer
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION
from tests.methods.matrix import config_of, registered

pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)
LAYERS = 4


def reads_per_layer(method, padded):
    """Reads while each layer is selected, its marked entries are counted, and it is stored."""
    from sparsemm_eval.cache.segment_store import SegmentArena

    scores = HeadScores(torch.rand(LAYERS, 4, generator=torch.Generator().manual_seed(0)))
    config, shared, arena = config_of(method, scores, budget=24, window=8), {}, SegmentArena(LAYERS)
    valid = torch.arange(90) >= torch.tensor([[0], [20 if padded else 0]])
    counts, marked = [], valid & (torch.arange(90) % 3 == 0)
    for layer in range(LAYERS):
        query, key, value = (torch.randn(2, heads, 90, 16).as_subclass(OnDevice) for heads in (4, 2, 2))
        view = PromptView(query, key, value, layer=layer, layers=LAYERS, config=config, shared=shared)
        view = replace(view, valid=valid.as_subclass(OnDevice)) if padded else view
        with counted_reads() as count:
            kept = keep_layer(view)
            kept.count_of(marked.as_subclass(OnDevice))
            arena.fill(layer, key, value, kept, 4)
        counts.append(count())
    return counts


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", ["snapkv", "sparsemm", "pyramidkv", "random", "streamingllm"])
def test_nothing_per_layer_where_budgets_are_known_before(method, padded):
    first, *between, last = reads_per_layer(method, padded)
    assert first <= 2  # of what all layers share: padding, and protected positions
    assert between == [0] * (LAYERS - 2)
    assert last <= 1  # how many entries every segment has, of all layers at once


def test_a_read_would_be_noticed():
    def by_content(view, scores):
        return view.for_all_heads([24 + int(scores[row].argmax() > 0) for row in range(view.batch)])

    reading = Method("reading", "Reading", score=WINDOW_ATTENTION, allocate=by_content)
    with registered(reading):
        assert min(reads_per_layer("reading", padded=False)) >= 2
