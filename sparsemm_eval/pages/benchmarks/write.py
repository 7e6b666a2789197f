"""Stand-ins for the seven benchmarks, so that upstream's own tasks run on a machine without any hub."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsemm_eval.pages.benchmarks import documents

DEFAULT_COUNT = 24
# Far from the seeds of the page tasks, whose pages come from the same split.
DEFAULT_SEED = 700


@dataclass(frozen=True)
class Benchmark:
    """One data set: where upstream's task looks for it, and what its rows are.

    Attributes
    ----------
    repository : str
        Name on the hub, and folder below the working directory.
    config, split : str
    tasks : tuple of str
        Upstream's tasks on it.
    rows : callable
        `(count, seed)` to rows.
    columns : dict
        Type of every column: a `datasets` value type, or a list of one, or a list of a dict of them.
    """

    repository: str
    config: str
    split: str
    tasks: tuple
    rows: Callable
    columns: dict


BENCHMARKS = (
    Benchmark(
        "lmms-lab-encoder/DocVQA",
        "DocVQA",
        "validation",
        ("docvqa_val",),
        documents.docvqa,
        {
            "questionId": "string",
            "question": "string",
            "question_types": ["string"],
            "image": "image",
            "docId": "int64",
            "ucsf_document_id": "string",
            "ucsf_document_page_no": "string",
            "answers": ["string"],
            "data_split": "string",
        },
    ),
    Benchmark(
        "echo840/OCRBench",
        "default",
        "test",
        ("ocrbench",),
        documents.ocrbench,
        {
            "dataset": "string",
            "question": "string",
            "question_type": "string",
            "answer": ["string"],
            "image": "image",
        },
    ),
    Benchmark(
        "lmms-lab-encoder/textvqa",
        "default",
        "validation",
        ("textvqa_val",),
        documents.textvqa,
        {
            "image_id": "string",
            "question_id": "int32",
            "question": "string",
            "image": "image",
            "image_width": "int32",
            "image_height": "int32",
            "answers": ["string"],
            "ocr_tokens": ["string"],
        },
    ),
    Benchmark(
        "lmms-lab-encoder/ChartQA",
        "default",
        "test",
        ("chartqa",),
        documents.chartqa,
        {"type": "string", "question": "string", "answer": "string", "image": "image"},
    ),
    Benchmark(
        "lmms-lab-encoder/TextCaps",
        "default",
        "val",
        ("textcaps_val",),
        documents.textcaps,
        {
            "question_id": "string",
            "image_id": "string",
            "image": "image",
            "caption_id": ["int64"],
            "caption_str": ["string"],
            "set_name": "string",
        },
    ),
    Benchmark(
        "lmms-lab-encoder/MMBench",
        "en",
        "dev",
        ("mmbench_en_dev", "mmbench_en_dev_static"),
        documents.mmbench,
        {
            "index": "int64",
            **dict.fromkeys(("question", "hint", "answer", "A", "B", "C", "D", "category"), "string"),
            "image": "image",
            **dict.fromkeys(("source", "L2-category", "comment", "split"), "string"),
        },
    ),
    Benchmark(
        "lmms-lab-encoder/VQAv2",
        "default",
        "validation",
        ("vqav2_val",),
        documents.vqav2,
        {
            "question_type": "string",
            "multiple_choice_answer": "string",
            "answers": [{"answer": "string", "answer_confidence": "string", "answer_id": "int64"}],
            "image_id": "int64",
            "answer_type": "string",
            "question_id": "int64",
            "question": "string",
            "image": "image",
        },
    ),
)

_CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: {split}
    path: {file}
---
Rendered pages of text with the columns of {repository}, for the tasks {tasks}.
This is not the benchmark and its scores say nothing about it.
"""


def write(directory, count=DEFAULT_COUNT, seed=DEFAULT_SEED):
    """Write a stand-in for every benchmark.

    Parameters
    ----------
    directory : path-like
        Made when missing; upstream's tasks find the data when it is the working directory.
    count : int
        Documents per benchmark.
    seed : int

    Returns
    -------
    list of pathlib.Path
        The data sets' folders.

    Raises
    ------
    ValueError
        If `count` is not positive.
    """
    import datasets

    if count < 1:
        raise ValueError(f"count={count} is not valid: expected an integer >= 1")
    folders = []
    for number, benchmark in enumerate(BENCHMARKS):
        folder = Path(directory) / benchmark.repository
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(benchmark.rows(count, seed + number))
        features = datasets.Features({name: _feature(kind) for name, kind in benchmark.columns.items()})
        file = _save(datasets.Dataset.from_list(rows, features=features), folder, benchmark.split)
        card = _CARD.format(
            config=benchmark.config,
            split=benchmark.split,
            file=file,
            repository=benchmark.repository,
            tasks=", ".join(benchmark.tasks),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        folders.append(folder)
    return folders


def command_line(directory, model="llava_fullkv", reader="tiny-reader"):
    """The shell command that evaluates a reader on everything `write` wrote."""
    arguments = f"--model {model} --model_args pretrained={reader} --tasks sparsemm_suite"
    return f"cd {Path(directory).resolve()} && sparsemm eval {arguments} --output_path runs"


def _save(data, folder, split):
    """Write rows to a file named by its content, alone in the folder.

    `datasets` caches a local data set by its card only; were other rows under the same file name, an
    earlier stand-in's would be evaluated.
    """
    fresh = folder / "fresh.parquet"
    data.to_parquet(fresh)
    name = f"{split}-{hashlib.sha256(fresh.read_bytes()).hexdigest()[:16]}.parquet"
    for old in folder.glob("*.parquet"):
        if old != fresh:
            old.unlink()
    fresh.rename(folder / name)
    return name


def _feature(kind):
    import datasets

    if isinstance(kind, list):
        return datasets.List(_feature(kind[0]))
    if isinstance(kind, dict):
        return {name: _feature(value) for name, value in kind.items()}
    return datasets.Image() if kind == "image" else datasets.Value(kind)
