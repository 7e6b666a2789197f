"""Where the shipped readers are. Imports nothing heavy, so that commands can ask before loading torch."""

from pathlib import Path

NAMES = ("tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl")
ROOT = Path(__file__).parents[1] / "pages" / "readers" / "checkpoints"


def resolve(name):
    """Folder of a shipped reader.

    Parameters
    ----------
    name : str
        A model name as a user gives it, for instance "tiny-reader".

    Returns
    -------
    pathlib.Path or None
        Folder for the transformers Auto classes; None when `name` is not the name of a shipped reader
        (a hub id or a path).

    Raises
    ------
    FileNotFoundError
        If the name is known but its weights are missing from this installation.
    """
    if name not in NAMES:
        return None
    folder = ROOT / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the reader {name!r} is missing from this installation ({folder}); reinstall sparsemm-eval, "
            f"or make it with: python -m sparsemm_eval.pages.training.train --family {name} --out {folder}"
        )
    return folder
