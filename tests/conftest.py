"""Settings that every test shares."""

import os

# Equal inputs give equal bits wherever they lie in memory; read when the library loads, so before torch.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import pytest
import torch

# Without a GPU, Triton kernels run in its interpreter. Read when Triton is imported, which torch does later.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from a second thread, and test processes run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
