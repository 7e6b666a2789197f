"""Imports point one way through the rooms, and no modules import each other in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sparsemm_eval import _HOMES

ROOT = Path(__file__).parents[1]
FOLDERS = {"sparsemm_eval": "sparsemm_eval"} | {
    f"sparsemm_eval.{name}": name for name in ("model_wrappers", "studies", "tasks")
}
#: A room imports from itself and from the lines above it. A module's room is the longest name that fits.
ORDER = (
    ("errors", "files", "checks", "compat", "studies", "tasks"),
    ("heads.scores",),
    ("methods",),
    ("pruning",),
    ("config",),
    ("kernels",),
    ("cache",),
    ("decode",),
    ("model",),
    ("pages",),
    ("heads",),  # anchors, scoring, figures
    ("model_wrappers",),
    ("lmms",),
    ("heads.commands",),
    ("study", "bench"),
    ("evidence", "tracking"),
    ("cli", "__main__"),
)
RANKS = {f"sparsemm_eval.{room}": rank for rank, rooms in enumerate(ORDER) for room in rooms}


def imports_of(path, known):
    """Modules of the package that a file imports, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for name in (alias.name for alias in node.names):
                module = _HOMES.get(name) if node.module == "sparsemm_eval" else None
                full = f"{node.module}.{name}"
                yield module or (full if full in known else node.module)


@pytest.fixture(scope="module")
def graph():
    """What each module imports; the package itself aside, which looks its names up when asked for them."""
    paths = {}
    for start, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            paths[".".join((start, *(part for part in parts if part != "__init__")))] = path
    del paths["sparsemm_eval"]
    return {name: set(imports_of(path, paths)) & paths.keys() for name, path in paths.items()}


def rank(module):
    while module not in RANKS:
        assert "." in module, "a room that the order does not have"
        module = module.rpartition(".")[0]
    return RANKS[module]


def test_imports_point_one_way(graph):
    pairs = [(name, other) for name, others in graph.items() for other in others]
    upward = [f"{name} imports {other}" for name, other in pairs if rank(other) > rank(name)]
    assert not upward, "\n".join(sorted(upward))


def test_no_modules_import_each_other_in_a_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
