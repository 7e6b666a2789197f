import json
import subprocess
import sys

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval.model import shipped as checkpoints
from sparsemm_eval.pages.readers.reading import prove
from sparsemm_eval.pages.readers.registry import READERS

# Measured scores lie above; the margin allows for the small sample.
TARGETS = {
    "tiny-reader": (0.97, 0.97),
    "tiny-reader-mistral": (0.97, 0.96),
    "tiny-reader-qwen2vl": (0.97, 0.96),
}


def test_names_agree_with_readers_and_folders():
    assert set(checkpoints.NAMES) == set(TARGETS) <= set(READERS)
    folders = sorted(folder.name for folder in checkpoints.ROOT.iterdir())
    assert sorted([*checkpoints.NAMES, checkpoints.ADAPTER.parent.name]) == folders


@pytest.mark.slow
@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_shipped_reader_reads(name):
    folder = checkpoints.resolve(name)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    proof = prove(model, processor, qa_count=100, ocr_count=24, batch_size=25, seed=11)
    assert proof["qa"] >= TARGETS[name][0]
    assert proof["ocr"] >= TARGETS[name][1]


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_shipped_files_are_small_and_clean(name):
    files = list(checkpoints.resolve(name).iterdir())
    assert sum(file.stat().st_size for file in files) < 10e6
    for file in files:
        if file.suffix in (".json", ".jinja"):
            assert "name_or_path" not in file.read_text()
            assert "/tmp" not in file.read_text()
    record = json.loads((checkpoints.resolve(name) / "training.json").read_text())
    assert record["family"] == name
    assert [stage["stage"] for stage in record["stages"]] == [stage.name for stage in READERS[name].recipe]


def test_other_names_are_not_ours(tmp_path, monkeypatch):
    assert checkpoints.resolve("llava-hf/llava-v1.6-vicuna-7b-hf") is None
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="sparsemm pages train --reader tiny-reader"):
        checkpoints.resolve("tiny-reader")


def test_resolving_needs_no_torch():
    code = "import sys; from sparsemm_eval.model import shipped as c"
    code += "; c.resolve(''); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
