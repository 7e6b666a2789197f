import json
from dataclasses import replace

import numpy as np
import torch
from lmms_eval.api.instance import unwrap_generation_output

from sparsemm_eval.cache.statistics import CacheStats
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement

STATS = CacheStats(
    kept=torch.tensor([[[4, 2], [6, 6]], [[8, 2], [6, 6]]]),  # [L, B, K]
    prompt_lengths=torch.tensor([9, 6]),
    layer_lengths=torch.tensor([[9, 6], [8, 6]]),
    entry_bytes=torch.tensor([16, 16]),
    generated=3,
    kv_bytes_peak=900,
    kv_bytes_allocated=1100,
    prefill_seconds=0.5,
    decode_seconds_per_step=0.1,
    warm_up_seconds=3.0,
    prefill_flops=torch.tensor([700, 500]),
)


def test_rows_get_their_own_figures_and_share_the_calls():
    first, second = (Measurement.of_row(STATS, row, image_tokens=4) for row in (0, 1))
    assert (first.prompt_tokens, second.prompt_tokens) == (9, 6)
    assert (first.effective_budget, second.effective_budget) == (4.0, 6.0)
    assert first.kept.tolist() == [[4, 2], [8, 2]]
    assert (first.kv_bytes, first.kv_bytes_full) == (16 * 16, 9 * 2 * 32)
    assert (first.kv_bytes_end, second.kv_bytes_end) == (256 + 3 * 2 * 32, 384 + 3 * 2 * 32)
    assert (first.image_tokens, first.image_tokens_kept, second.image_tokens_kept) == (4, 3, 4)
    assert (first.prefill_flops, second.prefill_flops) == (700, 500)
    assert first.batch == second.batch == 2
    assert first.kv_bytes_reserve == second.kv_bytes_reserve == (1100 - 448 - 576) / 2
    assert (first.kv_bytes_peak_per_call, first.decode_seconds_per_step) == (900, 0.1)
    assert (first.prefill_seconds, first.warm_up_seconds) == (0.25, 1.5)
    assert first.seconds == (0.5 + 3 * 0.1) / 2


def test_compact_records_come_back_equal():
    measured = Measurement.of_row(STATS, 0)
    back = Measurement.from_compact_record(json.loads(json.dumps(measured.to_compact_record())))
    np.testing.assert_array_equal(back.kept, measured.kept)
    assert back.to_record() == measured.to_record()
    assert back.evidence_kept is back.evidence_tokens is None


def test_evidence_is_of_the_rows_that_have_some():
    stats = replace(
        STATS,
        evidence_kept=torch.tensor([[[1, 0], [0, 0]], [[3, 2], [0, 0]]]),
        evidence_tokens=torch.tensor([3, 0]),
    )
    first, second = (Measurement.of_row(stats, row) for row in (0, 1))
    assert (first.evidence_tokens, first.evidence_kept.tolist()) == (3, [[1, 0], [3, 2]])
    assert second.evidence_tokens is second.evidence_kept is None
    for measured in (first, second):
        back = Measurement.from_compact_record(json.loads(json.dumps(measured.to_compact_record())))
        assert back.to_record() == measured.to_record()


def test_records_from_before_evidence_can_be_read():
    measured = Measurement.of_row(STATS, 0)
    record = measured.to_compact_record()
    del record["evidence_kept"], record["evidence_tokens"]
    assert Measurement.from_compact_record(record).to_record() == measured.to_record()


def test_lmms_eval_reads_text_and_counts():
    result = Answer("task", 3, 0, "yes", (5, 6, 2), Measurement.of_row(STATS, 0)).to_result()
    text, counts = unwrap_generation_output(result)
    assert text == "yes"
    assert counts.to_dict() == {
        "input_tokens": 9,
        "output_tokens": 3,
        "effective_budget": 4.0,
        "kv_bytes": 256,
        "kv_bytes_full": 576,
    }
