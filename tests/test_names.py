"""One name in one place: only a method's file says its name, and README's tables are the registry's."""

import ast
import re
from pathlib import Path

import pytest

from sparsemm_eval.config import knobs_in_use
from sparsemm_eval.methods import methods, scores
from sparsemm_eval.methods.registry import all_knobs
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION
from sparsemm_eval.model.families.registry import families
from sparsemm_eval.model_wrappers.manifests import model_names

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for room in ("sparsemm_eval", "model_wrappers", "tasks") for path in (ROOT / room).rglob("*.py")
]
ASSETS = [path for path in (ROOT / "sparsemm_eval").rglob("*") if path.suffix in (".js", ".j2", ".css")]
#: Words that mean something else, too; ``sparsemm`` is this package and its command.
WORDS = {"random", "mask", "sparsemm"}
NAMES = {*methods(), *model_names()} - WORDS


def literals(path):
    """Texts of a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_no_file_but_its_own_says_a_methods_name():
    said = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in SOURCES
        if path.parent.name != "methods"
        for line, text in literals(path)
        if NAMES & set(re.split(r"[^a-z0-9_]+", text))
    ]
    said += [
        f"{path.relative_to(ROOT)}: {name}"
        for path in ASSETS
        for name in sorted(NAMES)
        if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    ]
    assert said == []


def methods_table():
    """README's table of methods."""
    lines = ["| name | method | published | what it keeps |", "|---|---|---|---|"]
    for method in methods().values():
        lines.append(f"| `…_{method.name}` | {method.title} | {method.paper or '–'} | {method.meaning} |")
    return lines


def knobs_table():
    """The table of the settings that change what is kept."""
    lines = ["| setting | default | of | meaning |", "|---|---|---|---|"]
    for name, knob in all_knobs().items():
        owners = [method.name for method in methods().values() if name in knobs_in_use(method)]
        owners += [f"score={score.name}" for score in scores().values() if knob in score.knobs and not owners]
        every = [method.name for method in methods().values() if method.score is WINDOW_ATTENTION]
        used_by = "all that score by the window" if owners == every else ", ".join(owners)
        lines.append(f"| `{name}` | {knob.default} | {used_by} | {knob.meaning} |")
    return lines


def families_table():
    """README's table of model families."""
    lines = ["| name | family | default checkpoint |", "|---|---|---|"]
    lines += [f"| `{f.name}_…` | {f.title} | `{f.default_checkpoint}` |" for f in families().values()]
    return [*lines, "| `vlm_…` | whichever the checkpoint is of | none: name one with `pretrained=` |"]


@pytest.mark.parametrize(
    ("table", "file"),
    [
        (methods_table, "README.md"),
        (families_table, "README.md"),
        (knobs_table, "docs/methods.md"),
    ],
)
def test_tables_are_the_registrys(table, file):
    text = "\n".join(table())
    assert text in (ROOT / file).read_text(encoding="utf-8"), f"{file} lacks this table:\n{text}"
