import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval import CompressionConfig, compress
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.model import shipped as checkpoints
from sparsemm_eval.pages.readers.reading import MAX_NEW_TOKENS, documents, replies
from sparsemm_eval.tasks.pages.metrics import METRICS


def score_of(task, reply, row):
    """A reply's score as the task gives it, where the first line alone answers a value question."""
    return METRICS[task](reply.split("\n")[0] if task == "pages_qa" else reply, row["answer"])


def scores(model, processor, task, rows, batch_size=32):
    """Score of every document of a page task; inside ``compress`` the reader answers under compression."""
    found = replies(model, processor, rows, MAX_NEW_TOKENS[task], batch_size)
    return [score_of(task, reply, row) for reply, row in zip(found, rows, strict=True)]


@pytest.fixture(scope="module", params=checkpoints.NAMES)
def reader(request):
    folder = checkpoints.resolve(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return request.param, model, processor


@pytest.mark.parametrize(
    ("task", "count", "target"),
    [("pages_qa", 200, 0.97), pytest.param("pages_ocr", 64, 0.97, marks=pytest.mark.slow)],
)
def test_shipped_readers_read_the_tasks_documents(reader, task, count, target):
    _, model, processor = reader
    found = scores(model, processor, task, documents(task))
    assert len(found) == count
    assert sum(found) / count >= target


def test_visual_heads_carry_the_answer(reader):
    """The mechanism of the paper: the same entries spread evenly lose what the visual heads keep."""
    name, model, processor = reader
    rows = documents("pages_qa", 60)
    share = {}
    for method in ("sparsemm", "random"):
        table = resolve(None, name) if method == "sparsemm" else None
        config = CompressionConfig(method, budget=32, window=8, head_scores=table)
        with compress(model, config) as session:
            found = scores(model, processor, "pages_qa", rows, batch_size=60)
            assert session.stats.effective_budget < 33
        share[method] = sum(found) / len(found)
    assert share["sparsemm"] > 0.5
    assert share["random"] < share["sparsemm"] - 0.3


def test_documents_are_the_tasks_first():
    rows = documents("pages_ocr", 3)
    assert [row["answer"] for row in rows] == [row["answer"] for row in documents("pages_ocr")][:3]
