import pandas as pd
import pytest
from PIL import Image

from sparsemm_eval.study.tracking_media import COLUMNS, MAX_TEXT, sample_table, save_budget_map, worst_first
from sparsemm_eval.study.tracking_pages import Pages
from tests.study.tracked_cells import make_cell, sample_rows


def no_image(task, doc_id):
    return None


def samples(*rows):
    names = ["doc_id", "answer", "fullkv_answer", "identical", "score"]
    return pd.DataFrame([dict(zip(names, row, strict=True), task="t") for row in rows])


def test_worst_disagreements_come_first():
    frame = samples(
        (0, "12345", "12345", True, 1.0),
        (1, "12345", "12345", True, 0.0),
        (2, "12345", "12349", False, 1.0),
        (3, "12345", "abcde", False, 1.0),
        (4, "12345", "abcde", False, 0.0),
    )
    assert [row["doc_id"] for row in worst_first(frame)] == [4, 3, 2, 1, 0]
    assert [row["doc_id"] for row in worst_first(frame, limit=2)] == [4, 3]


def test_without_fullkv_the_lowest_scores_come_first():
    frame = samples((0, "a", None, None, 1.0), (1, "a", None, None, None), (2, "a", None, None, 0.5))
    assert [row["doc_id"] for row in worst_first(frame)] == [2, 0, 1]


def test_table_has_bounded_rows_and_small_images(tmp_path):
    cell, _ = make_cell(tmp_path)
    table = sample_table(sample_rows(cell, 10), lambda *_: Image.new("L", (800, 400)), tmp_path, limit=3)
    assert table["columns"] == list(COLUMNS)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table["rows"]]
    assert len(rows) == 3
    assert not any(row["identical"] for row in rows)
    for row in rows:
        with Image.open(row["image"]) as image:
            assert image.size == (192, 96)
        assert row["question"] == f"question {row['doc_id']}"
        assert row["kept_entries"] == 20.5


def test_table_without_images_and_with_long_text(tmp_path):
    cell, _ = make_cell(tmp_path)
    frame = sample_rows(cell, 1).assign(answer="a" * 5000)
    [row] = sample_table(frame, no_image, tmp_path)["rows"]
    found = dict(zip(COLUMNS, row, strict=True))
    assert found["image"] is None
    assert len(found["answer"]) == MAX_TEXT
    assert found["answer"].endswith("…")


def test_columns_of_the_table_have_one_type_each(tmp_path):
    cell, _ = make_cell(tmp_path)
    frame = sample_rows(cell, 3).astype({"target": object, "identical": "boolean"})
    frame.at[0, "target"] = ["a", "b"]
    frame.loc[1, "identical"] = pd.NA
    frame.loc[2, "fullkv_answer"] = None
    columns = zip(*sample_table(frame, no_image, tmp_path)["rows"], strict=True)
    types = {
        name: {type(value) for value in column} - {type(None)}
        for name, column in zip(COLUMNS, columns, strict=True)
    }
    assert types.pop("image") == set()
    assert all(len(found) == 1 for found in types.values())
    assert (types["target"], types["identical"], types["score"]) == ({str}, {bool}, {float})


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (32, 32)])
def test_map_of_heads_is_a_picture_of_many_colours(tmp_path, shape):
    layers, heads = shape
    kept = [[layer * heads + head for head in range(heads)] for layer in range(layers)]
    save_budget_map(kept, tmp_path / "map.png", "title")
    with Image.open(tmp_path / "map.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) >= layers * heads


def test_pages_have_images_and_scores():
    pages = Pages()
    frame = pd.read_parquet(pages._folder / "pages_qa.parquet")
    truth = frame["answer"].iloc[7]
    assert pages.score("pages_qa", 7, truth) == 1.0
    assert pages.score("pages_qa", 7, truth + "x") == 0.0
    assert 0 < pages.score("pages_ocr", 0, "UG 882605210") < 1
    image = pages.image("pages_qa", 7)
    assert min(image.size) > 8
    assert pages.image("pages_qa", 6).tobytes() != image.tobytes()


def test_pages_know_nothing_of_other_tasks():
    pages = Pages()
    assert pages.image("docvqa_val", 0) is None
    assert pages.score("docvqa_val", 0, "x") is None
    assert pages.image("pages_qa", 10**6) is None
