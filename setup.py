"""Which folders are installed: those of `sparsemm_eval`, and others of the repository below it."""

from setuptools import find_packages, setup

BESIDE = ("head_scores", "model_wrappers", "studies", "tasks")

setup(
    packages=[
        *find_packages(include=["sparsemm_eval", "sparsemm_eval.*"]),
        *(f"sparsemm_eval.{name}" for room in BESIDE for name in find_packages(include=[room, f"{room}.*"])),
    ],
    package_dir={f"sparsemm_eval.{name}": name for name in BESIDE},
)
