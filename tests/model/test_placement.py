import pytest
import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.placement import place


def test_the_cpu_computes_in_float32():
    placed = place("cpu", None, None)
    assert placed.device == torch.device("cpu")
    assert placed.dtype is torch.float32
    assert (placed.rank, placed.world_size) == (0, 1)


def test_dtypes():
    assert place("cpu", None, "bfloat16").dtype is torch.bfloat16
    assert place("cpu", None, "auto").dtype == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_cuda():
    assert place("auto", None, None).device.type == "cpu"
    with pytest.raises(ConfigError, match="cpu or one of 0 CUDA devices"):
        place("cuda", None, None)


@pytest.mark.parametrize("device", ["gpu", "tpu", "meta", "cuda:many", "cuda:-1", ""])
def test_devices_that_are_none(device):
    with pytest.raises(ConfigError, match="device"):
        place(device, None, None)


def test_dtypes_that_are_none():
    with pytest.raises(ConfigError, match=r"dtype='int3'.*bfloat16"):
        place("cpu", None, "int3")


def test_device_maps():
    assert place("auto", "auto", None).device_map == "auto"
    assert place("auto", "auto", None).dtype == "auto"
    with pytest.raises(ConfigError, match="device_map"):
        place("auto", "everywhere", None)
    with pytest.raises(ConfigError, match="device"):
        place("cpu", "auto", None)
