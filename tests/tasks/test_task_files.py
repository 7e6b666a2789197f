"""The YAML files as lmms-eval reads them, from anywhere and from an installation that is not editable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsemm_eval.lmms.tasks import suite_members
from tests.lmms_process import environment

ROOT = Path(__file__).parents[2]
LOOK = """
import json
from lmms_eval.tasks import TaskManager
from sparsemm_eval.tasks import FOLDER
manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
found = {"folder": str(FOLDER), "index": manager.all_tasks}
for name, task in manager.load_task_or_group(["pages_qa", "pages_ocr"]).items():
    page = task.task_docs[0]
    (image,) = task.doc_to_visual(page)
    found[name] = {
        "count": len(task.task_docs),
        "question": task.doc_to_text(page),
        "mode": image.mode,
        "right": task.process_results(page, [task.doc_to_target(page)]),
        "wrong": task.process_results(page, ["?"]),
        "settings": task.config.generation_kwargs,
    }
print(json.dumps(found))
"""


def look(folder, python_path=None):
    surroundings = {**os.environ, **environment(folder)}
    if python_path is not None:
        surroundings["PYTHONPATH"] = str(python_path)
    surroundings.pop("LMMS_EVAL_PLUGINS")
    return json.loads(run_python(LOOK, [], folder, surroundings).splitlines()[-1])


def run_python(code, arguments, folder, surroundings=None):
    line = [sys.executable, "-c", code, *arguments]
    outcome = subprocess.run(line, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def check(found):
    assert found["index"] == [
        "pages_many_16",
        "pages_many_2",
        "pages_many_4",
        "pages_many_8",
        "pages_ocr",
        "pages_ocr_dev",
        "pages_qa",
        "pages_qa_dev",
        "sparsemm_suite",
    ]
    qa, ocr = found["pages_qa"], found["pages_ocr"]
    assert (qa["count"], ocr["count"]) == (200, 64)
    assert qa["question"].startswith("value of ")
    assert ocr["question"] == "read all text"
    assert qa["mode"] == ocr["mode"] == "RGB"
    assert (qa["right"], qa["wrong"]) == ({"exact_match": 1.0}, {"exact_match": 0.0})
    assert (ocr["right"], ocr["wrong"]) == ({"character_accuracy": 1.0}, {"character_accuracy": 0.0})
    assert qa["settings"] == {"max_new_tokens": 16, "until": ["\n"], "temperature": 0.0, "do_sample": False}
    assert ocr["settings"] == {"max_new_tokens": 448, "until": [], "temperature": 0.0, "do_sample": False}


def test_from_another_working_directory(tmp_path):
    found = look(tmp_path)
    assert Path(found["folder"]) == ROOT / "tasks"
    check(found)


def test_from_an_installed_package(tmp_path):
    pytest.importorskip("setuptools", reason="builds the package")
    library, scratch = tmp_path / "library", tmp_path / "build"
    commands = ["-q", "build", "--build-base", str(scratch), "build_py", "--build-lib", str(library)]
    run_python("import runpy; runpy.run_path('setup.py')", commands, ROOT)
    work = tmp_path / "work"
    work.mkdir()
    found = look(work, library)
    assert Path(found["folder"]) == library / "sparsemm_eval" / "tasks"
    check(found)


def test_the_suite_is_the_seven_benchmarks():
    assert suite_members() == [
        "docvqa_val",
        "ocrbench",
        "textvqa_val",
        "chartqa",
        "textcaps_val",
        "mmbench_en_dev_static",
        "vqav2_val",
    ]
