"""Which checkpoint is it? The folder a name stands for, and the fingerprint of what decides its answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import user_cache, write_text_atomically
from sparsemm_eval.model import shipped

# In transformers' order: the first that is there is loaded. An index lists the files that hold parts of them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Config, generation config, tokenizer, processor and chat templates; not README, licence or training record.
OTHERS = (
    "*config.json",
    "*token*.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "*.model",
    "*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
LARGE = 64 * 2**20  # digests of files with more bytes are remembered
_SHA256 = re.compile("[0-9a-f]{64}")


def local_folder(given: str, argument: str = "pretrained") -> Path | None:
    """The folder of a shipped reader, or the one that is named; None for what only the Hub can have.

    Raises
    ------
    ConfigError
        If a shipped reader is missing from this installation.
    """
    try:
        folder = shipped.resolve(given)
    except FileNotFoundError as error:
        raise ConfigError(argument, given, f"an installed reader: {error}") from error
    local = Path(os.path.expanduser(given))
    return local if folder is None and os.path.isdir(local) else folder


def local_fingerprint(given: str, argument: str = "pretrained") -> dict[str, str] | None:
    """`fingerprint` of what ``local_folder`` finds; None where it finds nothing."""
    folder = local_folder(given, argument)
    return None if folder is None else fingerprint(folder, argument, given)


def fingerprint(folder: Path, argument: str, given: str) -> dict[str, str]:
    """What tells a checkpoint from others, the same for a download and a copy of it.

    Parameters
    ----------
    folder : pathlib.Path
    argument, given : str
        What the user calls it and wrote, for messages.

    Returns
    -------
    dict
        ``weights``: ``sha256:…`` of the weights' file; of several, over their names and digests. ``files``:
        over names and digests of everything else that decides answers.

    Raises
    ------
    ConfigError
        If the folder holds no weights, or not all that its index lists.
    """
    try:
        weights = _weight_files(folder)
        others = {path for pattern in OTHERS for path in folder.glob(pattern) if path.is_file()}
        whole = _sha256(weights[0]) if len(weights) == 1 else _sha256_of_all(folder, weights)
        return {"weights": f"sha256:{whole}", "files": f"sha256:{_sha256_of_all(folder, others)}"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(argument, given, f"a complete checkpoint, which it is not: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise FileNotFoundError(f"it holds no weights ({' or '.join(WEIGHTS[::2])})")
    if first.suffix != ".json":
        return [first]
    names = sorted(set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"it lacks {', '.join(missing)}, which {first.name} lists")
    return [folder / name for name in names]


def _sha256_of_all(folder: Path, paths: Iterable[Path]) -> str:
    digests = sorted([path.relative_to(folder).as_posix(), _sha256(path)] for path in paths)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Hex digest of a file's content, read only where nobody knows it yet."""
    real = path.resolve()
    # The Hub's cache keeps large files under their digest and links to them.
    if path.is_symlink() and real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    status = real.stat()
    if status.st_size <= LARGE:
        return hashlib.sha256(real.read_bytes()).hexdigest()
    seen = [str(real), status.st_size, status.st_mtime_ns, status.st_ino]
    memory = user_cache("digests") / hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    # Where the memory cannot be read or written, the file is read again next time.
    with contextlib.suppress(OSError):
        known = memory.read_text(encoding="ascii", errors="replace")
        if _SHA256.fullmatch(known):
            return known
    digest = hashlib.sha256()
    with real.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    if real.stat().st_mtime_ns == status.st_mtime_ns:
        with contextlib.suppress(OSError):
            write_text_atomically(memory, digest.hexdigest())
    return digest.hexdigest()
