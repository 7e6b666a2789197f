"""Which head scores belong to a model: explicit, shipped, made by the user, or published by the authors."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from urllib.error import HTTPError

import filelock

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.files import user_cache, write_text_atomically
from sparsemm_eval.heads.scores.table import HeadScores

OFFICIAL_URL = "https://raw.githubusercontent.com/CR400AF-A/SparseMM/{ref}/visual_head/head_score/{file}"
# the content is verified, so any ref that still serves it will do
OFFICIAL_REFS = ("f52655b", "main")
ATTEMPTS = 3  # per ref
DOWNLOAD_SECONDS = 60.0  # for all of a file
LARGEST_DOWNLOAD = 64 * 2**20  # bytes
WAIT_SECONDS = 600.0  # for another process that downloads


@dataclass(frozen=True)
class PublishedTable:
    """A table in the authors' repository: file name and the git blob id its content must have."""

    file: str
    git_blob: str
    models: tuple[str, ...]

    def is_of(self, name: str) -> bool:
        """Whether a name is one of its models', or the path of a copy that has kept a model's name."""
        return name in self.models or Path(name).name in {Path(model).name for model in self.models}


PUBLISHED = (
    PublishedTable(
        "llava-v1.6.json",
        "c2d5d55da77279eff5b565b9132db68bbbfc3fa5",
        ("llava-v1.6", "llava-hf/llava-v1.6-vicuna-7b-hf", "liuhaotian/llava-v1.6-vicuna-7b"),
    ),
    PublishedTable(
        "llava-mistral-v1.6.json",
        "3a44c325ea11b622642afb6fa3eceea62757f733",
        ("llava-mistral-v1.6", "llava-hf/llava-v1.6-mistral-7b-hf", "liuhaotian/llava-v1.6-mistral-7b"),
    ),
    PublishedTable(
        "qwen.json",
        "5664a700e8669146a66affd433f6be0cdd235401",
        ("qwen", "Qwen/Qwen2-VL-7B-Instruct"),
    ),
)


def cache_folder() -> Path:
    """Where the user's own and downloaded tables live."""
    return user_cache("head_scores")


def file_name(model_name: str) -> str:
    """The file name of a model's scores: path separators and other odd characters become ``--``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", model_name.strip("/")) + ".json"


def git_blob_id(content: bytes) -> str:
    """The id git gives to a file of this content."""
    header = b"blob %d\x00" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def resolve(scores: str | Path | HeadScores | None, model_name: str | None = None) -> HeadScores:
    """Find the head scores for a run.

    Order: an explicit table, file or name; what this package ships for the model; what the user made for it
    (`cache_folder`); the authors' published table, downloaded once and verified.

    Parameters
    ----------
    scores : str, Path, HeadScores or None
        A table, a file, or a name (a shipped one, a model's, a published table's). None: look by model.
    model_name : str, optional
        Hub id, shipped name or path of the checkpoint.

    Raises
    ------
    HeadScoreError
        If nothing is found; the message says where it looked and how to make scores.
    """
    if isinstance(scores, HeadScores):
        return scores
    if scores is not None and Path(os.path.expanduser(scores)).is_file():
        return _load(Path(os.path.expanduser(scores)))
    name = model_name if scores is None else scores
    if name is None:
        raise HeadScoreError("head_scores is not given and there is no model name to look it up by")
    found = _by_name(name) if isinstance(name, str) else None
    if found is not None:
        return found
    if scores is None:
        raise HeadScoreError(
            f"no head scores are known for model {name!r}: pass head_scores=PATH to one made for it, or "
            f"head_scores=NAME if it is a copy of a model whose scores have a name (looked among the shipped "
            f"tables, in {cache_folder()} and in the published tables of "
            f"{', '.join(table.models[1] for table in PUBLISHED if table.models[1:])})"
        )
    published = ", ".join(table.models[0] for table in PUBLISHED)
    raise HeadScoreError(
        f"head_scores={str(name)!r} is neither a file nor a known name: expected the path of a head-score "
        f"JSON, one of the shipped names ({', '.join(shipped_names())}) or a published one ({published})"
    )


def shipped_names() -> list[str]:
    """Names of the tables that come with the package."""
    folder = resources.files("sparsemm_eval.head_scores")
    return sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json"))


def _by_name(name: str) -> HeadScores | None:
    if name in shipped_names():
        text = (resources.files("sparsemm_eval.head_scores") / f"{name}.json").read_text(encoding="utf-8")
        return HeadScores.parse(text, f"shipped head scores {name!r}")
    own = cache_folder() / file_name(name)
    if own.is_file():
        return HeadScores.load(own)
    for table in PUBLISHED:
        if table.is_of(name):
            return _published(table)
    return None


def _load(path: Path) -> HeadScores:
    """A file's table; where it is a published one, its provenance says of which models."""
    scores = HeadScores.load(path)
    blob = git_blob_id(path.read_bytes())
    for table in PUBLISHED:
        if table.git_blob == blob:
            stated = {"file": table.file, "model": table.models[-1], "models": list(table.models)}
            return HeadScores(scores.table, {**scores.provenance, **stated})
    return scores


def check_made_for(scores: HeadScores, weights: str, model_name: str) -> str | None:
    """Refuse a table that was made for other weights.

    Parameters
    ----------
    scores : HeadScores
    weights : str
        Fingerprint of the model's weights, ``sha256:…``.
    model_name : str
        Hub id, shipped name or folder of the checkpoint; for tables that know models by name only.

    Returns
    -------
    str or None
        A warning, where the table does not say what it was made for or was made from a single image.

    Raises
    ------
    HeadScoreError
        If the table says that it is of other weights or of another model.
    """
    facts = scores.provenance
    remedy = "use scores made for this model, or foreign_head_scores=True for an experiment across models"
    if scores.weights is not None:
        if scores.weights != weights:
            of = f"{facts.get('model', 'a model')} with weights {scores.weights}"
            raise HeadScoreError(f"head scores are of {of}, the model has {weights}: {remedy}")
        return "head scores come from a single image" if facts.get("images") == 1 else None
    models = facts.get("models") or [name for name in [facts.get("model")] if name]
    if not models:
        return "head scores do not say which model they were made for"
    if Path(model_name).name not in {Path(model).name for model in models}:
        raise HeadScoreError(f"head scores are of {models[-1]}, the model is {model_name}: {remedy}")
    return None


def _published(table: PublishedTable) -> HeadScores:
    stored = cache_folder() / "published" / table.file
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{stored}.lock", timeout=WAIT_SECONDS):
            if not stored.is_file() or git_blob_id(stored.read_bytes()) != table.git_blob:
                write_text_atomically(stored, _fetched(table, stored).decode("utf-8"))
    except OSError as error:  # a lock that cannot be had in time is one
        raise HeadScoreError(f"head scores cannot be stored at {stored}: {error}") from error
    return _load(stored)


def _fetched(table: PublishedTable, stored: Path) -> bytes:
    failures = []
    for ref in OFFICIAL_REFS:
        url = OFFICIAL_URL.format(ref=ref, file=table.file)
        try:
            content = _patiently(url)
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        actual = git_blob_id(content)
        if actual == table.git_blob:
            return content
        wrong = f"content has git blob id {actual}, expected {table.git_blob}; nothing was kept"
        failures.append(f"{url}: {wrong}")
    raise HeadScoreError(
        f"the published head scores {table.file} could not be downloaded: {'; '.join(failures)}. "
        f"Download the file yourself and pass head_scores=PATH, or put it at {stored}"
    )


def _patiently(url: str) -> bytes:
    """Download with further attempts, except for what the server does not have."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download(url)
        except (OSError, HTTPException) as error:
            lost = isinstance(error, HTTPError) and error.code < 500
            if lost or attempt == ATTEMPTS:
                raise
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("every attempt returns or raises")


def _download(url: str) -> bytes:
    deadline, content = time.monotonic() + DOWNLOAD_SECONDS, bytearray()
    with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
        while block := response.read1(2**16):
            content += block
            if len(content) > LARGEST_DOWNLOAD:
                raise OSError(f"more than {LARGEST_DOWNLOAD} bytes")
            if time.monotonic() > deadline:
                raise OSError(f"not complete after {DOWNLOAD_SECONDS:.0f} seconds")
    return bytes(content)
