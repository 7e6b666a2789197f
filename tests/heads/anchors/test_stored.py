"""Anchors of published data, read from small files of the same formats."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
from sparsemm_eval.heads.scoring.score_heads import Workload, score_heads, summarise
from tests.heads.scoring.samples import processor_of
from tests.tiny_models import model_of


def picture(path, size=(200, 100), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode == "L" else (120, 90, 60)).save(path)


def pairs(sample):
    return [(item.text, item.box) for item in sample.boxes]


@pytest.fixture
def synthdog(tmp_path):
    lines = datasets.List(
        {"chunk": datasets.Value("string"), "coord": datasets.List(datasets.List(datasets.Value("float64")))}
    )
    rows = [
        {
            "image": Image.new("L", (200, 100), 200 + number),
            "2_coord": [
                {"chunk": f"word{number} two", "coord": [[10, 20], [60, 35.5]]},
                {"chunk": "off the page", "coord": [[150, 20], [260, 35]]},
                {"chunk": "", "coord": [[1, 2], [6, 5]]},
            ],
        }
        for number in range(5)
    ]
    features = datasets.Features({"image": datasets.Image(), "2_coord": lines})
    folder = tmp_path / "synthdog" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows[:3], features=features).to_parquet(folder / "train-0.parquet")
    datasets.Dataset.from_list(rows[3:], features=features).to_parquet(folder / "train-1.parquet")
    return tmp_path / "synthdog"


def test_synthdog(synthdog, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    anchor = anchor_named("synthdog", str(synthdog))
    assert (anchor.size, anchor.rule) == (5, "unique")
    samples = [anchor.sample(0, index) for index in range(5)]
    assert sorted(sample.name for sample in samples) == [f"synthdog-{number}" for number in range(5)]
    assert [sample.name for sample in samples] != [anchor.sample(1, index).name for index in range(5)]
    for sample in samples:
        number = sample.name[-1]
        assert sample.image.mode == "RGB"
        assert pairs(sample) == [(f"word{number} two", (10, 20, 60, 35.5))]
        assert sample.answer == f"word{number} two"
        assert sample.bad_boxes == {"outside the image": 1, "empty text": 1}


def test_synthdog_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="parquet files"):
        anchor_named("synthdog", str(tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_list([{"text": "x"}]).to_parquet(tmp_path / "other" / "a.parquet")
    with pytest.raises(ConfigError, match="columns image and 2_coord"):
        anchor_named("synthdog", str(tmp_path / "other"))


def test_mlt(tmp_path):
    for name in ("img_1", "img_2"):
        picture(tmp_path / "images" / f"{name}.jpg")
    truth = tmp_path / "gt"
    truth.mkdir()
    (truth / "gt_img_1.txt").write_text(
        "\ufeff10,20,60,22,58,40,9,38,Latin,Café, open\n70,20,90,20,90,40,70,40,None,###\n"
        "-3,50,20,50,20,60,-3,60,Latin,cut\n\n5,60,50,60,50,80,5,80,Chinese,书店\n",
        encoding="utf-8",
    )
    (truth / "gt_img_2.txt").write_text("1,1,9,1,9,9,1,9,Latin,A\n")
    anchor = anchor_named("mlt", str(tmp_path))
    assert anchor.size == 2
    found = {sample.name: sample for sample in (anchor.sample(0, 0), anchor.sample(0, 1))}
    assert pairs(found["img_1"]) == [("Café, open", (9, 20, 60, 40)), ("书店", (5, 60, 50, 80))]
    assert found["img_1"].bad_boxes == {"outside the image": 1}
    assert pairs(found["img_2"]) == [("A", (1, 1, 9, 9))]


def test_mlt_2019_names_ground_truth_like_its_image(tmp_path):
    picture(tmp_path / "ImagesPart1" / "tr_img_00001.jpg")
    (tmp_path / "tr_img_00001.txt").write_text("1,1,9,1,9,9,1,9,Hindi,नमस्ते\n", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("no ground truth")
    anchor = anchor_named("mlt", str(tmp_path))
    assert anchor.size == 1
    assert pairs(anchor.sample(0, 0)) == [("नमस्ते", (1, 1, 9, 9))]


@pytest.mark.parametrize("line", ["1,2,3", "a,20,60,22,58,40,9,38,Latin,x"])
def test_mlt_errors_name_file_and_line(tmp_path, line):
    picture(tmp_path / "i.jpg")
    (tmp_path / "gt_i.txt").write_text(f"1,1,9,1,9,9,1,9,Latin,A\n{line}\n")
    with pytest.raises(ConfigError, match=r"gt_i\.txt:2.*transcription"):
        anchor_named("mlt", str(tmp_path)).sample(0, 0)
    (tmp_path / "i.jpg").unlink()
    with pytest.raises(ConfigError, match=r"an image for gt_i\.txt"):
        anchor_named("mlt", str(tmp_path))


def test_ctw1500(tmp_path):
    picture(tmp_path / "train" / "0001.jpg")
    picture(tmp_path / "test" / "1001.jpg")
    (tmp_path / "0001.xml").write_text(
        '<Annotations><image file="0001.jpg">'
        '<box height="30" left="12" top="5" width="80"><label>FRESH &amp; HOT</label><segs>1,2</segs></box>'
        '<box height="30" left="12" top="50" width="80"><label>###</label></box>'
        "</image></Annotations>"
    )
    (tmp_path / "0001001.txt").write_text(
        "10,10,30,5,50,10,50,30,30,25,10,30,####CURVED, text\n1,1,9,1,9,9,#######\n"
    )
    anchor = anchor_named("ctw1500", str(tmp_path))
    found = {sample.name: pairs(sample) for sample in (anchor.sample(0, 0), anchor.sample(0, 1))}
    assert found == {
        "1": [("FRESH & HOT", (12, 5, 92, 35))],
        "1001": [("CURVED, text", (10, 5, 50, 30))],
    }


@pytest.mark.parametrize(
    ("name", "text"), [("1.xml", "<a>"), ("1.txt", "1,2,3"), ("1.xml", "<a><box left='1'/></a>")]
)
def test_ctw1500_errors(tmp_path, name, text):
    picture(tmp_path / "1.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name}.*official CTW1500"):
        anchor_named("ctw1500", str(tmp_path)).sample(0, 0)


def ctw_line(name="0000172.jpg"):
    def character(text, box):
        return {"text": text, "adjusted_bbox": box, "is_chinese": True, "attributes": [], "polygon": []}

    sentences = [
        [character("你", [10.5, 20, 12, 14]), character("好", [24, 18, 12, 15])],
        [character("A", [100, 50, 20, 20])],
        [character("off", [190, 50, 20, 20])],
    ]
    record = {
        "image_id": name[:-4],
        "file_name": name,
        "width": 200,
        "height": 100,
        "ignore": [{"polygon": []}],
    }
    return json.dumps({**record, "annotations": sentences}, ensure_ascii=False)


def test_ctw(tmp_path):
    picture(tmp_path / "images" / "0000172.jpg")
    picture(tmp_path / "images" / "0000173.jpg")
    nothing = json.dumps({"file_name": "0000173.jpg", "annotations": []})
    (tmp_path / "train.jsonl").write_text(f"{ctw_line()}\n\n{nothing}\n", encoding="utf-8")
    anchor = anchor_named("ctw", str(tmp_path))
    assert anchor.size == 1
    sample = anchor.sample(0, 0)
    assert pairs(sample) == [("你好", (10.5, 18, 36, 34)), ("A", (100, 50, 120, 70))]
    assert sum(sample.bad_boxes.values()) == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"annotations": [[{"text": "A"}]]}', ctw_line("missing.jpg")])
def test_ctw_errors_name_file_and_line(tmp_path, line):
    picture(tmp_path / "0000172.jpg")
    (tmp_path / "train.jsonl").write_text(f"{ctw_line()}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 2"):
        anchor_named("ctw", str(tmp_path))


def coco_record():
    return {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "traffic light"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 1, 90, 90], "iscrowd": 1},
            {"image_id": 7, "category_id": 3, "bbox": [10.5, 20, 30, 40]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 10]},
        ],
    }


def test_coco(tmp_path):
    picture(tmp_path / "val2017" / "a.jpg", mode="L")
    picture(tmp_path / "val2017" / "b.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(coco_record()))
    anchor = anchor_named("coco", str(tmp_path))
    assert anchor.size == 1
    sample = anchor.sample(0, 0)
    assert pairs(sample) == [("traffic light", (10.5, 20, 40.5, 60)), ("dog", (0, 0, 200, 100))]
    assert sample.bad_boxes == {"empty box": 1}


def test_coco_errors(tmp_path):
    with pytest.raises(ConfigError, match="exactly one instances"):
        anchor_named("coco", str(tmp_path))
    (tmp_path / "instances_a.json").write_text(json.dumps(coco_record()))
    with pytest.raises(ConfigError, match=r"instances_a\.json.*images exist"):
        anchor_named("coco", str(tmp_path))


@pytest.mark.parametrize("name", ["mlt", "ctw", "ctw1500", "coco"])
def test_missing_folders(name, tmp_path):
    for data in (None, str(tmp_path / "none")):
        with pytest.raises(ConfigError, match=f"anchor '{name}' a folder"):
            anchor_named(name, data)
    with pytest.raises(ConfigError):
        anchor_named(name, str(tmp_path))


def test_scoring_a_stored_anchor(tmp_path):
    picture(tmp_path / "i.jpg", size=(300, 140))
    lines = [
        f"{x},10,{x + 40},10,{x + 40},50,{x},50,Latin,{text}"
        for x, text in ((5, "abc"), (90, "xyz"), (200, "12"))
    ]
    (tmp_path / "gt_i.txt").write_text("\n".join([*lines, "1,1,999,1,999,9,1,9,Latin,far"]))
    anchor = anchor_named("mlt", str(tmp_path))
    for family in ("tiny-reader", "tiny-reader-qwen2vl"):
        images = score_heads(
            model_of(family), processor_of(family), anchor, ScoringRule("teacher", topk=5), Workload(1)
        )
        scores = summarise(images, {})
        assert scores.provenance["tokens"] == 8
        assert scores.provenance["bad_boxes"] == {"outside the image": 1}


def test_files_that_cannot_be_read_are_named(tmp_path):
    picture(tmp_path / "i.jpg")
    (tmp_path / "gt_i.txt").write_bytes(b"1,1,9,1,9,9,1,9,Latin,\xff\n")
    with pytest.raises(ConfigError, match=r"data='gt_i\.txt'.*text in UTF-8"):
        anchor_named("mlt", str(tmp_path)).sample(0, 0)
    (tmp_path / "gt_i.txt").write_text("1,1,9,1,9,9,1,9,Latin,A\n")
    (tmp_path / "i.jpg").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"data='i\.jpg'.*an image file"):
        anchor_named("mlt", str(tmp_path)).sample(0, 0)
