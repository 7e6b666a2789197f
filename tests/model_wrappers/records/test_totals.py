import json

import numpy as np
import pytest

from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.records.totals import Totals


def answer(doc_id, text="yes", budget=10.0, batch=1, decode=0.1):
    measured = Measurement(
        prompt_tokens=100,
        effective_budget=budget,
        kept=np.full((2, 3), int(budget), dtype=np.int32),
        kv_bytes=int(budget) * 8,
        kv_bytes_full=800,
        kv_bytes_end=int(budget) * 10,
        batch=batch,
        kv_bytes_reserve=30.0,
        kv_bytes_peak_per_call=1000 + doc_id,
        prefill_seconds=1.0,
        warm_up_seconds=0.5,
        decode_seconds_per_step=decode,
        seconds=2.0,
    )
    return Answer("task", doc_id, 0, text, (1, 2, 3), measured)


def test_summary():
    totals = Totals()
    totals.add(answer(0, budget=10.0, batch=2), restored=False)
    totals.add(answer(1, " ", budget=20.0, batch=2, decode=None), restored=False)
    totals.add(answer(5, budget=30.0, decode=9.0), restored=True)
    totals.skipped = {"task/2": "torn"}
    assert totals.summary() == {
        "samples": 3,
        "samples_skipped": 1,
        "samples_restored": 1,
        "samples_timed": 2,
        "empty_answers": 1,
        "answers_past_context": 0,
        "prompt_tokens_per_sample": 100,
        "effective_budget": 20.0,
        "effective_budget_min": 10.0,
        "effective_budget_max": 30.0,
        "kv_bytes_per_sample": 160.0,
        "kv_bytes_full_per_sample": 800.0,
        "kv_bytes_end_per_sample": 200.0,
        "kv_bytes_reserve_per_sample": 30.0,
        "kv_bytes_peak_per_call": 1001,
        "kv_share": pytest.approx(0.2),
        "prefill_seconds_per_sample": 1.0,
        "decode_seconds_per_step": 0.1,
        "decode_seconds_per_token": 0.05,
        "elapsed_seconds": 4.0,
        "warm_up_seconds": 1.0,
    }
    assert json.loads(json.dumps(totals.summary())) == totals.summary()
    assert totals.kept_mean() == [[20.0] * 3] * 2
    assert totals.empty_names() == ["task/1"]
    assert totals.table()["generated_tokens"].sum() == 9


def test_parts_add_up_to_the_whole():
    answers = [answer(i, budget=10.0 + i) for i in range(7)]
    whole, left, right = Totals(), Totals(), Totals()
    for i, one in enumerate(answers):
        whole.add(one, restored=False)
        (left if i % 2 else right).add(one, restored=False)
    merged = Totals.merged([left, right, Totals()])
    assert (whole.elapsed_seconds, merged.elapsed_seconds) == (14, 8)  # of 4 + 3 at the same time
    expected = whole.summary() | {"elapsed_seconds": 8.0, "warm_up_seconds": 2.0}
    assert merged.summary() == pytest.approx(expected)
    assert merged.kept_mean() == whole.kept_mean()
    assert len(left.rows) == 3


def test_nothing_measured_says_nothing():
    assert Totals.merged([Totals()]).summary() == {
        "samples": 0,
        "samples_skipped": 0,
        "samples_restored": 0,
        "samples_timed": 0,
        "empty_answers": 0,
        "answers_past_context": 0,
    }
    assert Totals().kept_mean() is None


def test_answers_that_end_beyond_the_context_are_counted():
    exact, beyond = Totals(103), Totals(102)  # 100 tokens of prompt, 3 of answer
    for totals in (exact, beyond):
        totals.add(answer(0), restored=False)
    assert exact.summary()["answers_past_context"] == 0
    assert Totals.merged([Totals(102), beyond]).summary()["answers_past_context"] == 1
