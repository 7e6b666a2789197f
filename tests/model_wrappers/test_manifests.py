import ast
from pathlib import Path

from lmms_eval.api.model import lmms
from lmms_eval.models import get_model, get_model_manifest

from sparsemm_eval.model_wrappers import manifests as manifests_module
from sparsemm_eval.model_wrappers.manifests import SUFFIXES, manifests

NAMES = [f"{family}_{suffix}" for family in ("llava", "qwen2vl") for suffix in SUFFIXES]


def test_sixteen_names_are_registered_with_lmms_eval():
    assert [manifest.model_id for manifest in manifests()] == NAMES
    for name in NAMES:
        assert get_model_manifest(name).model_id == name


def test_every_name_resolves_to_its_class():
    for name in NAMES:
        for force_simple in (False, True):
            found = get_model(name, force_simple)
            assert issubclass(found, lmms)
            assert found.model_name == name
            assert found.is_simple == (force_simple or name.startswith("qwen2vl"))


def test_the_entry_point_imports_nothing_heavy():
    tree = ast.parse(Path(manifests_module.__file__).read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"__future__", "typing"}
