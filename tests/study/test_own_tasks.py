"""Own images to a table with intervals, as docs/studies.md says it, with the real command."""

import re
import sys
from pathlib import Path

import datasets
import pytest

from sparsemm_eval.tasks import FOLDER
from tests.lmms_process import environment, is_shipped, run

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"


def blocks(kind):
    section = PAGE.read_text(encoding="utf-8").partition("### Own tasks")[2].partition("\n### ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["include_path", "file"])
def test_own_images_and_questions(tmp_path, way):
    if not is_shipped("tiny-reader"):
        pytest.skip("needs the shipped reader and its head scores")
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    task, study = blocks("yaml")
    utils, rows = blocks("python")
    (folder / "mine.yaml").write_text(task)
    (folder / "utils.py").write_text(utils)
    data = FOLDER / "pages" / "data" / "pages_qa.parquet"
    shipped = datasets.load_dataset("parquet", data_files=str(data), split="train")
    pages = []
    for number in range(12):
        # Two questions on each image.
        document = shipped[number // 2]
        path = tmp_path / f"page{number // 2}.png"
        document["image"].save(path)
        texts = {name: document[name] for name in ("question", "answer")}
        pages.append({"image": str(path), **texts})
    given = re.sub(r"rows = \[.*\]", f"rows = {pages!r}", rows)
    done = run([sys.executable, "-c", given], tmp_path)
    assert done.returncode == 0, done.stderr
    study = study.replace("[16, 32, 64]", "[32]").replace("[fullkv, snapkv, sparsemm]", "[fullkv, sparsemm]")
    if way == "file":
        study = study.replace("tasks: [mine]\ninclude_path: my_tasks", "tasks: [my_tasks/mine.yaml]")
        assert "mine.yaml" in study
    (tmp_path / "mine.yaml").write_text(study)
    command = [sys.executable, "-m", "sparsemm_eval", "study"]
    done = run([*command, "run", "mine.yaml"], tmp_path, **environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    shown = run([*command, "show", "runs/mine", "--table", "main"], tmp_path, **environment(tmp_path))
    assert re.search(r"fullkv +all +1\.000 \[0\.\d+, 1\.000\]", shown.stdout), shown.stdout + shown.stderr
