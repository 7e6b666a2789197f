"""Evidence recall from a page's boxes to the run record, with the shipped reader."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.heads.scores.recall import FIGURES, recall_figures
from sparsemm_eval.model_wrappers.records.run_record import read_runs
from sparsemm_eval.pages.benchmarks.write import ocr_rows, qa_rows
from tests.lmms_process import is_shipped
from tests.model_wrappers.helpers import answers_of

pytestmark = pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is installed")
PLAIN = {"image", "question"}


def pages(rows):
    return [row | {"image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in rows]


@pytest.fixture
def measured(build_wrapper, tmp_path):
    """Run record and samples of a method's answers to some documents."""

    def run(method, docs, **model_args):
        settings = {"pretrained": "tiny-reader", "batch_size": 4, "journal": str(tmp_path / "journal")}
        settings |= {"stats_dir": str(tmp_path / method), **model_args}
        wrapper = build_wrapper(f"llava_{method}", docs=docs, **settings)
        answers_of(wrapper, docs, gen_kwargs={"max_new_tokens": 12})
        wrapper.clean()
        record = read_runs(tmp_path / method)[-1]
        path = record["path"].replace("_sparsemm_run.json", "_sparsemm_samples.rank0.jsonl")
        with open(path, encoding="utf-8") as file:
            samples = sorted((json.loads(line) for line in file), key=lambda row: row["doc_id"])
        return record["measured"], samples

    return run


def test_sparsemm_keeps_more_of_the_answer_than_snapkv(measured):
    docs = pages([*qa_rows(8), *ocr_rows(2)])
    docs += [{name: docs[0][name] for name in PLAIN}]
    found = {method: measured(method, docs, budget=32, window=8) for method in ("sparsemm", "snapkv")}
    assert found["sparsemm"][0]["evidence_recall"] > 0.5 > found["snapkv"][0]["evidence_recall"]
    shares = resolve("tiny-reader").kv_head_shares(8).numpy()
    for record, samples in found.values():
        for doc, sample in zip(docs[:8], samples[:8], strict=True):
            assert sample["evidence_tokens"] == len(doc["answer"])  # a cell of the page is a token
        for doc, sample in zip(docs[8:10], samples[8:10], strict=True):
            assert sample["evidence_tokens"] == len("".join(doc["answer"].split()))
        assert all(samples[10][name] is None for name in ("evidence_tokens", "evidence_kept", *FIGURES))
        for sample in samples[:10]:
            tables = [np.array(sample[name]) for name in ("evidence_kept", "kept")]
            counts = [sample[name] for name in ("evidence_tokens", "prompt_tokens")]
            own = recall_figures(tables[0], counts[0], tables[1], counts[1], 8, shares)
            assert {name: sample[name] for name in FIGURES} == own
        assert record["evidence_samples"] == 10
        for name in FIGURES:
            assert record[name] == pytest.approx(np.mean([sample[name] for sample in samples[:10]]))


def test_a_full_cache_keeps_all_of_it_in_any_batch_and_from_the_journal(measured):
    docs = pages(qa_rows(4))
    first, samples = measured("fullkv", docs)
    assert {first[name] for name in FIGURES} == {1.0}
    again, restored = measured("fullkv", docs)
    assert [sample["restored"] for sample in restored] == [True] * 4
    assert {first[name] for name in FIGURES} == {again[name] for name in FIGURES}
    assert [sample["evidence_kept"] for sample in samples] == [row["evidence_kept"] for row in restored]


def test_documents_without_boxes_leave_no_trace(measured):
    docs = [{name: page[name] for name in PLAIN} for page in pages(qa_rows(2))]
    record, samples = measured("snapkv", docs, budget=32, window=8)
    assert not [name for name in record if name.startswith("evidence")]
    assert all(sample[name] is None for sample in samples for name in ("evidence_kept", *FIGURES))
