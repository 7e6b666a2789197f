"""Study files that come with the package; `sparsemm study run NAME` finds them by name."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
