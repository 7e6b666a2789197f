"""Pruning through the wrappers, and through the real lmms-eval command."""

import json
import sys

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model_wrappers.records.run_record import read_runs
from tests.lmms_process import environment, run
from tests.model_wrappers.helpers import answers_of, make_requests
from tests.model_wrappers.task_folder import write_task

READERS = {"llava": ("tiny-reader", "tiny-reader-mistral"), "qwen2vl": ("tiny-reader-qwen2vl",)}
CASES = [
    (family, prune, reader)
    for family, readers in READERS.items()
    for prune in ("fastv", "divprune", "downsample")
    for reader in readers
]


def measured(wrapper, documents):
    """Every answer's measurements, and its text."""
    seen, add = [], wrapper._report.add

    def note(sample, answer, *, restored):
        seen.append((answer.doc_id, answer.measured, answer.text))
        add(sample, answer, restored=restored)

    wrapper._report.add = note
    wrapper.generate_until(make_requests(documents, chat=not wrapper.is_simple))
    return [one[1:] for one in sorted(seen, key=lambda one: one[0])]


@pytest.mark.parametrize(("family", "prune", "reader"), CASES)
def test_what_is_pruned_is_measured_against_whole_prompts(build_wrapper, documents, family, prune, reader):
    full = measured(build_wrapper(f"{family}_fullkv", reader=reader, batch_size=5), documents)
    for method, knobs in (("fullkv", {}), ("snapkv", {"budget": 40, "window": 8})):
        given = {"reader": reader, "prune": prune, "image_share": 0.4, **knobs}
        together = measured(build_wrapper(f"{family}_{method}", batch_size=5, **given), documents)
        alone = measured(build_wrapper(f"{family}_{method}", batch_size=1, **given), documents)
        for (ours, text), (own, other), (whole, _) in zip(together, alone, full, strict=True):
            assert text == other
            assert ours.kept.tolist() == own.kept.tolist()
            assert (ours.prompt_tokens, ours.image_tokens) == (whole.prompt_tokens, whole.image_tokens)
            assert ours.kv_bytes_full == whole.kv_bytes_full == whole.kv_bytes
            if not whole.image_tokens:
                assert ours.image_tokens_kept == 0
                assert ours.prefill_flops == whole.prefill_flops
                continue
            assert ours.prefill_flops < whole.prefill_flops
            assert ours.kv_bytes < whole.kv_bytes
            if prune == "downsample" and family == "llava":
                assert ours.image_tokens_kept == 64 - 1 + 1  # the thumbnail's, whatever the share
            elif prune == "downsample":
                assert ours.image_tokens_kept == pytest.approx(0.4 * whole.image_tokens, rel=0.15)
            else:
                assert ours.image_tokens_kept == round(0.4 * whole.image_tokens)


def test_the_identity_and_the_figures_name_it(build_wrapper, documents):
    wrapper = build_wrapper("qwen2vl_fullkv", prune="fastv", image_share=0.5, prune_layer="3")
    answers_of(wrapper, documents)
    assert wrapper.identity["compression"] == {
        "method": "fullkv", "prune": "fastv", "image_share": 0.5, "prune_layer": 3,
    }  # fmt: skip
    wrapper.clean()
    figures = wrapper.run_record["measured"]
    assert figures["image_tokens_kept_per_sample"] == pytest.approx(
        figures["image_tokens_per_sample"] / 2, abs=1
    )
    assert figures["kv_share"] < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prune": "fastw"}, "prune='fastw'.*did you mean 'fastv'"),
        ({"image_share": 0.5}, "image_share=0.5.*no value without prune=divprune or downsample or fastv"),
        ({"prune": "divprune", "prune_layer": 2}, "prune_layer=2.*no value without prune=fastv"),
        ({"prune": "divprune", "image_share": 0}, r"image_share=0 .*a number in \(0, 1\]"),
        ({"prune": "fastv", "prune_layer": 0}, "prune_layer=0.*an integer >= 1"),
        ({"prune": "fastv", "prune_layer": 6}, r"prune_layer=6.*an integer in \[1, 5\]"),
    ],
)
def test_what_cannot_work_is_refused(build_wrapper, documents, given, message):
    with pytest.raises(ConfigError, match=message):
        answers_of(build_wrapper("llava_fullkv", **given), documents)


def test_the_real_command(checkpoints, documents, tmp_path):
    name = write_task(tmp_path, documents[:3], ["x"] * 3)
    given = {
        "pretrained": checkpoints["tiny-reader-qwen2vl"],
        **{"budget": 40, "window": 8, "prune": "downsample", "image_share": 0.5, "batch_size": 2},
        **{"journal": "off", "stats_dir": tmp_path / "stats"},
    }
    line = [
        *(sys.executable, "-m", "lmms_eval", "--model", "qwen2vl_snapkv", "--model_args"),
        ",".join(f"{key}={value}" for key, value in given.items()),
        *("--tasks", name, "--include_path", str(tmp_path), "--device", "cpu"),
        *("--output_path", str(tmp_path / "results"), "--log_samples"),
    ]
    finished = run(line, tmp_path, **environment(tmp_path), ACCELERATE_USE_CPU="true")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (record,) = read_runs(tmp_path / "stats")
    figures = record["measured"]
    assert record["compression"]["prune"] == "downsample"
    assert figures["effective_budget"] == 40
    assert 0.4 < figures["image_tokens_kept_per_sample"] / figures["image_tokens_per_sample"] < 0.6
    (results,) = (tmp_path / "results").rglob("*_results.json")
    assert json.loads(results.read_text())["throughput"]["avg_nominal_image_share"] == 0.5
