"""The evidence document: a trial of a few samples, its parts, and where the heat of the figure lies."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.evidence import measure
from sparsemm_eval.evidence.__main__ import main
from sparsemm_eval.evidence.sources import SHAPES, write_shapes
from sparsemm_eval.evidence.text import resampled_tables
from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.heads.figures.word_attention import word_attention
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.placement import place
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.questions import READ_QUESTION
from tests.lmms_process import is_shipped
from tests.study.study_folder import Spec, write_study

needs_reader = pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is shipped")


def test_shapes_are_where_their_boxes_are(tmp_path):
    write_shapes(tmp_path, 12)
    anchor = anchor_named("coco", str(tmp_path))
    assert anchor.size == 12
    seen = set()
    for index in range(12):
        sample = anchor.sample(0, index)
        assert not sample.bad_boxes
        pixels = np.asarray(sample.image.convert("L")).astype(int)
        dark = pixels < 130
        for item in sample.boxes:
            seen.add(item.text)
            left, top, right, bottom = item.box
            rows, columns = np.nonzero(dark[top:bottom, left:right])
            assert columns.min() == 0
            assert columns.max() == right - left - 1
            assert len(rows) > 50
            dark[top:bottom, left:right] = False
        assert not dark.any()
    assert seen == set(SHAPES)


def test_resampled_tables_are_means_of_whole_images():
    stack = torch.zeros(3, 1, 3, dtype=torch.float64)
    stack[range(3), 0, range(3)] = 1.0
    tables = resampled_tables(stack, 200)
    assert torch.allclose(tables.sum((1, 2)), torch.ones(200, dtype=torch.float64))
    counts = tables * 3
    assert torch.allclose(counts, counts.round())
    assert math.isclose(float(tables.mean()), 1 / 3, abs_tol=1e-9)
    assert float(tables.std()) > 0.2


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        main(["--out", str(tmp_path / "e.md"), "--anchor", "mlt"])
    with pytest.raises(ConfigError, match=r"--out=.*a file that can be written"):
        main(["--out", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"--work=.*a folder that can be written to"):
        main(["--out", str(tmp_path / "e.md"), "--work", __file__])


@needs_reader
def test_the_heat_of_the_best_head_lies_on_the_word():
    """The figure's promise in numbers, on several pages and words."""
    loaded = checkpoint.load(checkpoint.find("tiny-reader"), place("cpu", None, "float32"))
    head = resolve("tiny-reader").best_heads(1)[0]
    shares, exact = [], []
    for index, size in enumerate(((8, 16), (8, 24), (16, 16))):
        page = make_page("heldout", 77, index, size)
        seen = word_attention(loaded.model, loaded.processor, page.image, READ_QUESTION)
        for number in (0, len(page.entries) // 2):
            value = page.entries[number].value
            if value not in seen.answer:  # the reader may misread one
                continue
            seen = word_attention(loaded.model, loaded.processor, page.image, READ_QUESTION, value)
            shares.append(measure.share_on(seen, head, page, number))
            cell = divmod(int(seen.maps[head].argmax()), seen.maps.shape[-1])
            exact.append(cell in page.entries[number].value_cells)
    assert len(shares) >= 4
    assert sum(exact) / len(exact) >= 0.75
    assert sum(shares) / len(shares) > 0.6


@pytest.mark.slow
@needs_reader
def test_the_whole_document_in_small(tmp_path, monkeypatch):
    write_shapes(tmp_path / "data", 4, seed=3)
    out, work, study = tmp_path / "docs" / "evidence.md", tmp_path / "work", tmp_path / "study"
    masks = [
        Spec("mask", None, None, {"mask_ratio": 0.05}),
        Spec("mask_random", None, 0, {"mask_ratio": 0.05}),
    ]
    write_study(study, [Spec("fullkv"), *masks, Spec("sparsemm", 32, None, {"window": 8, "ratio": 0.1})])
    record = json.loads((study / "study.json").read_text())
    record["settings"]["knobs"] = {"window": [16]}
    (study / "study.json").write_text(json.dumps(record))
    line = [
        "--out",
        str(out),
        "--work",
        str(work),
        "--study",
        str(study),
        "--effort",
        "trial",
        "--anchor",
        f"coco={tmp_path / 'data'}",
    ]
    main(line)
    text = out.read_text()
    for heading in (
        "Few heads",
        "Are they the same heads",
        "Without its visual heads",
        "Which scores",
        "Where the heads",
    ):
        assert f"## {heading}" in text
    assert "published data, coco" in text
    assert "window 16" in text
    assert "nan" not in text
    assert str(tmp_path) not in text
    for name in ("head-map", "two-sets-of-pages", "word"):
        assert f"(figures/{name}.png)" in text
        assert min(Image.open(out.parent / "figures" / f"{name}.png").size) > 200
    kept = {path.name: path.read_bytes() for path in work.glob("*.jsonl")}
    assert set(kept) == {"measured-00000.jsonl"}
    monkeypatch.setattr(measure, "_score", lambda *_: pytest.fail("measured again"))
    main(line)
    assert out.read_text() == text
    assert {path.name: path.read_bytes() for path in work.glob("*.jsonl")} == kept
