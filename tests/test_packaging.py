"""What is installed: the distributions' files, and the libraries that setup.cfg asks for."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("head_scores", "model_wrappers", "sparsemm_eval", "studies", "tasks")
#: Where a module is not named after what brings it.
BROUGHT_BY = {"PIL": "pillow", "yaml": "pyyaml", "triton": "torch"}


def build(kind, folder, out):
    """Build a distribution of a folder, as pip does, and return its path."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def tracked():
    """Names of the files of this checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("compares with the files that git tracks")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def distributions(tracked, tmp_path_factory):
    """Names of files: in the source distribution of what is tracked, and in the wheel built of that."""
    folder = tmp_path_factory.mktemp("distributions")
    checkout, out = folder / "checkout", folder / "out"
    for name in tracked:
        target = checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    out.mkdir()
    with tarfile.open(build("sdist", checkout, out)) as archive:
        sources = {member.name.partition("/")[2] for member in archive if member.isfile()}
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, out)) as archive:
        return sources, set(archive.namelist())


def test_the_source_distribution_is_complete(tracked, distributions):
    sources, _ = distributions
    assert tracked - sources == set()
    made = {name for name in sources - tracked if "egg-info/" not in name}
    assert made == {"PKG-INFO"}


def test_the_wheel_holds_every_file_of_the_package(tracked, distributions):
    _, files = distributions
    expected = {name for name in tracked if name.partition("/")[0] in ROOMS}
    installed = {name if name.startswith("sparsemm_eval/") else f"sparsemm_eval/{name}" for name in expected}
    assert installed == {name for name in files if ".dist-info/" not in name}


def imported(folder):
    """Top-level modules that the files of a folder import, at any depth."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_what_is_imported_is_what_is_required():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"].split("\n")
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in required if line}
    modules = {name for room in ROOMS for name in imported(ROOT / room)} - sys.stdlib_module_names
    needed = {BROUGHT_BY.get(name, name) for name in modules}
    assert needed - names == {"sparsemm_eval", "wandb_workspaces"}  # the extra "dashboard" is for the latter
    assert names - needed == {"gguf"}  # transformers reads such files with it, for smol-reader
