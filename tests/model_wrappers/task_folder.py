"""A small lmms-eval task on local data, for runs of the real evaluator."""

import datasets

UTILS = """
import os

def to_visual(doc):
    if doc["question"] == os.environ.get("BROKEN_QUESTION"):
        raise OSError("image file is truncated")
    return [doc["image"].convert("RGB")]

def to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
YAML = """
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {folder}/pages.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: !function {name}_utils.to_visual
doc_to_text: !function {name}_utils.to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder, documents, answers, name="local_pages", tokens=5):
    """Write data, task file and functions to a folder for ``--include_path``."""
    rows = [
        {"image": document["image"], "question": document["question"], "answer": answer}
        for document, answer in zip(documents, answers, strict=True)
    ]
    features = {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(
        folder / "pages.parquet"
    )
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, folder=folder, tokens=tokens))
    (folder / f"{name}_utils.py").write_text(UTILS)
    return name
