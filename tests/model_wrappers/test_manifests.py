import subprocess
import sys

import pytest
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model, get_model_manifest

from sparsemm_eval.methods import methods
from sparsemm_eval.model.families.registry import families
from sparsemm_eval.model_wrappers import wrapper
from sparsemm_eval.model_wrappers.manifests import manifests, model_names

SIXTEEN = [
    f"{family}_{method}"
    for family in ("llava", "qwen2vl")
    for method in ("sparsemm", "fullkv", "snapkv", "pyramidkv", "adakv", "random", "mask", "mask_random")
]


def test_every_family_and_method_has_a_name():
    names = [manifest.model_id for manifest in manifests()]
    assert names == [f"{prefix}_{method}" for prefix in (*families(), "vlm") for method in methods()]
    assert set(SIXTEEN) <= set(names)
    for name in names:
        assert get_model_manifest(name).model_id == name


@pytest.mark.parametrize("name", model_names())
def test_every_name_resolves_to_its_class(name):
    family, method = model_names()[name]
    for force_simple in (False, True):
        found = get_model(name, force_simple)
        assert issubclass(found, lmms)
        assert (found.model_name, found.family, found.method) == (name, family, method)
        assert found.is_simple == (force_simple or name.startswith("qwen2vl"))
        assert found is get_model(name, force_simple)
        assert method.meaning in found.__doc__


def test_other_names_are_no_classes():
    for name in ("llava_quest__chat", "llava_snapkv", "classes"):
        with pytest.raises(AttributeError, match=name):
            getattr(wrapper, name)


def test_a_broken_plugin_says_so(tmp_path):
    line = [sys.executable, "-m", "lmms_eval", "--model", "llava_snapkv", "--tasks", "pages_qa"]
    import os

    ended = subprocess.run(
        line,
        env={**os.environ, "SPARSEMM_PLUGINS": "no_such_module"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "SPARSEMM_PLUGINS='no_such_module' is not valid: expected a module that can be imported"
        in ended.stderr
    )
