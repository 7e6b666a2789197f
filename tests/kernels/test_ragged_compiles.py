"""The kernels compile to machine code for Hopper and Ampere on a machine that has neither."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = ["90:bf16:128", "90:fp16:80", "90:fp32:128", "80:bf16:256"]
SHARED_MEMORY = {"90": 227 * 1024, "80": 163 * 1024}  # bytes per multiprocessor, CUDA programming guide


@pytest.mark.slow
def test_compiles(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_gpu", *TARGETS],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(fact["kernel"], fact["target"]) for fact in facts] == [
        (kernel, target) for target in TARGETS for kernel in ("_attend_span", "_merge_spans")
    ]
    for fact in facts:
        capability, dtype, _ = fact["target"].split(":")
        assert fact["code"] > 1000
        assert (
            2 * fact["shared"] <= SHARED_MEMORY[capability]
        )  # two programs at once: one reads, one computes
        if fact["kernel"] == "_attend_span":
            assert fact["asynchronous"]
            assert fact["matrix_units"] == (dtype != "fp32")
