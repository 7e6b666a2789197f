"""lmms-eval tasks that come with the package: the page tasks and the suite of seven benchmarks."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
