"""The real lmms-eval command with this package's models: the page tasks, and upstream's on stand-in data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsemm_eval.lmms.arguments import Run
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.results import find
from sparsemm_eval.lmms.tasks import suite_members
from sparsemm_eval.pages.benchmarks.write import write_stand_ins
from sparsemm_eval.tasks import FOLDER
from tests.lmms_process import checkpoint, environment, is_shipped

MODELS = {
    "tiny-reader": "llava_fullkv",
    "tiny-reader-mistral": "llava_fullkv",
    "tiny-reader-qwen2vl": "qwen2vl_fullkv",
}
# What a reader that reads must get right; the other prompts are harder.
READ = {"docvqa_val": "anls", "vqav2_val": "exact_match", "chartqa": "relaxed_overall"}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with the stand-in benchmarks and a quiet environment."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setitem(os.environ, name, value)
    folder = tmp_path / "work"
    write_stand_ins(folder, 8)
    monkeypatch.chdir(folder)
    return folder


def arguments(model, pretrained, tasks, limit, tokens=None):
    options = {
        "model": model,
        "model_args": f"pretrained={pretrained},device=cpu,journal=off",
        "tasks": ",".join(tasks),
        "limit": str(limit),
        "batch_size": "4",
        "output_path": "out",
    }
    line = [part for name, value in options.items() for part in (f"--{name}", value)]
    # A random reader never ends an answer.
    return line if tokens is None else [*line, "--gen_kwargs", f"max_new_tokens={tokens}"]


def answers(results, task):
    """Answer by document, from the samples file beside the results."""
    path = results.path.with_name(results.path.name.replace("_results.json", f"_samples_{task}.jsonl"))
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({sample["doc_id"] for sample in samples}) == len(samples)
    return {sample["doc_id"]: sample["filtered_resps"] for sample in samples}


def test_page_tasks_and_ocrbench_by_the_plain_command(work, tmp_path):
    reader = checkpoint("tiny-reader", tmp_path)
    tokens = None if is_shipped("tiny-reader") else 4
    tasks = ("pages_qa", "pages_ocr", "ocrbench")
    line = arguments("llava_fullkv", reader, tasks, 4, tokens)
    program = [Path(sys.executable).with_name("lmms-eval"), "--include_path", FOLDER]
    outcome = subprocess.run([*program, *line], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    model_args = line[line.index("--model_args") + 1]
    results = find(Run("llava_fullkv", model_args, tasks, Path("out")), {})
    assert results.contents["throughput"]["avg_samples"] == 12
    if is_shipped("tiny-reader"):
        assert results.scores("pages_qa")["exact_match"] == 1
        assert results.scores("pages_ocr")["character_accuracy"] > 0.95
        assert results.scores("ocrbench")["ocrbench_accuracy"] >= 0.003


@pytest.mark.slow
@pytest.mark.parametrize("reader", MODELS)
def test_all_seven_benchmarks_with_every_family(work, tmp_path, reader):
    shipped = is_shipped(reader)
    tasks = [task for task in suite_members() if task != "textcaps_val" or shutil.which("java")]
    line = arguments(MODELS[reader], checkpoint(reader, tmp_path), tasks, 4, None if shipped else 4)
    (results,) = evaluate(line)
    assert results.contents["throughput"]["avg_samples"] == 4 * len(tasks)
    for task, metric in READ.items():
        assert not shipped or results.scores(task)[metric] >= 0.75, task


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(work, tmp_path):
    reader = checkpoint("tiny-reader", tmp_path)
    line = [*arguments("llava_fullkv", reader, ("pages_qa", "chartqa"), 5, 4), "--log_samples"]
    place = line.index("--model_args") + 1
    (one,) = evaluate(line)
    line[place] += ",stats_dir=stats"
    (two,) = evaluate(line, processes=2)
    for task in ("pages_qa", "chartqa"):
        assert one.scores(task) == two.scores(task)
        assert len(answers(one, task)) == 5
        assert answers(one, task) == answers(two, task)
    assert two.contents["throughput"]["avg_samples"] == 10
    record = json.loads(two.path.read_text())["sparsemm"]
    assert record == two.contents["sparsemm"]
    assert (record["processes"], record["measured"]["samples"]) == (2, 10)
