"""What importing the package must not need or do."""

import subprocess
import sys

BLOCKED = ("lmms_eval", "wandb", "datasets", "typer", "decord")

CHECK = f"""
import sys

for name in {BLOCKED!r}:
    sys.modules[name] = None  # as if it were not installed
import sparsemm_eval
assert "torch" not in sys.modules, "the bare import loaded torch"
sparsemm_eval.compress, sparsemm_eval.HeadScores, sparsemm_eval.CompressionConfig, sparsemm_eval.RaggedCache
import sparsemm_eval.model.masked_heads
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

registered = [name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "sparsemm" in name]
assert not registered, "the import registered an attention function"
assert sparsemm_eval.__version__
"""


def test_the_core_needs_only_torch_and_transformers():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
