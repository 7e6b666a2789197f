import subprocess
import sys

import pytest

from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.kernels import dispatch


def test_auto_is_torch_on_a_cpu(monkeypatch):
    for interpret in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        assert dispatch.choose("auto", "cpu") == "torch"


def test_auto_is_triton_on_cuda_where_it_is_installed(monkeypatch):
    assert dispatch.choose("auto", "cuda:1") == "triton"
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert dispatch.choose("auto", "cuda") == "torch"


def test_torch_is_taken_at_its_word():
    assert dispatch.choose("torch", "cuda") == dispatch.choose("torch", "cpu") == "torch"


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose("triton", "cpu") == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UnsupportedError, match=r"kernel='triton' on cpu.*kernel=torch"):
        dispatch.choose("triton", "cpu")


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.raises(UnsupportedError, match="not installed"):
        dispatch.choose("triton", "cuda")


def test_unknown_kernel_lists_the_known():
    with pytest.raises(ConfigError, match="auto, torch, triton"):
        dispatch.choose("tritonn", "cpu")


def test_triton_is_imported_on_demand():
    code = (
        "import sys; from sparsemm_eval.kernels import dispatch, work_list; sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
