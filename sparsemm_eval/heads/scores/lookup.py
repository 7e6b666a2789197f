"""Which head scores belong to a model: explicit, shipped, made by the user, or published by the authors."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.files import user_cache, write_text_atomically
from sparsemm_eval.heads.scores.table import HeadScores

OFFICIAL_URL = "https://raw.githubusercontent.com/CR400AF-A/SparseMM/{ref}/visual_head/head_score/{file}"
# the content is verified, so any ref that still serves it will do
OFFICIAL_REFS = ("f52655b", "main")
DOWNLOAD_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class PublishedTable:
    """A table in the authors' repository: file name and the git blob id its content must have."""

    file: str
    git_blob: str
    models: tuple[str, ...]


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

Fetch = Callable[[str], bytes]


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


def resolve(
    scores: str | Path | HeadScores | None,
    model_name: str | None = None,
    *,
    cache: Path | None = None,
    fetch: Fetch | None = None,
) -> HeadScores:
    """Find the head scores for a run.

    Order: an explicit table, file or name; what this package ships for the model; what the user made for it
    (``cache``); the authors' published table, downloaded once and verified.

    Parameters
    ----------
    scores : str, Path, HeadScores or None
        A table, a file, or a name (a shipped one, a model's, a published table's). None: look by model.
    model_name : str, optional
        Hub id, shipped name or path of the checkpoint.
    cache : Path, optional
        Folder of the user's tables.
    fetch : callable, optional
        ``fetch(url) -> bytes``; raises OSError where nothing can be fetched.

    Raises
    ------
    HeadScoreError
        If nothing is found; the message says where it looked and how to make scores.
    """
    if isinstance(scores, HeadScores):
        return scores
    if scores is not None and Path(os.path.expanduser(scores)).is_file():
        return HeadScores.load(os.path.expanduser(scores))
    name, cache = model_name if scores is None else scores, cache or cache_folder()
    if name is None:
        raise HeadScoreError("head_scores is not given and there is no model name to look it up by")
    found = _by_name(name, cache, fetch or _download) if isinstance(name, str) else None
    if found is not None:
        return found
    if scores is None:
        raise HeadScoreError(
            f"no head scores are known for model {name!r}: pass head_scores=PATH to one made for it "
            f"(looked among the shipped tables, in {cache} and in the published tables)"
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


def _by_name(name: str, cache: Path, fetch: Fetch) -> HeadScores | None:
    if name in shipped_names():
        text = (resources.files("sparsemm_eval.head_scores") / f"{name}.json").read_text(encoding="utf-8")
        return HeadScores.parse(text, f"shipped head scores {name!r}")
    own = cache / file_name(name)
    if own.is_file():
        return HeadScores.load(own)
    for table in PUBLISHED:
        if name in table.models:
            return _published(table, cache, fetch)
    return None


def _published(table: PublishedTable, cache: Path, fetch: Fetch) -> HeadScores:
    stored = cache / "published" / table.file
    if stored.is_file() and git_blob_id(stored.read_bytes()) == table.git_blob:
        return HeadScores.load(stored)
    failures = []
    for ref in OFFICIAL_REFS:
        url = OFFICIAL_URL.format(ref=ref, file=table.file)
        try:
            content = fetch(url)
        except OSError as error:
            failures.append(f"{url}: {error}")
            continue
        actual = git_blob_id(content)
        if actual == table.git_blob:
            write_text_atomically(stored, content.decode("utf-8"))
            return HeadScores.load(stored)
        wrong = f"content has git blob id {actual}, expected {table.git_blob}; nothing was kept"
        failures.append(f"{url}: {wrong}")
    raise HeadScoreError(
        f"the published head scores {table.file} could not be downloaded: {'; '.join(failures)}. "
        f"Download the file yourself and pass head_scores=PATH, or put it at {stored}"
    )


def _download(url: str) -> bytes:
    # urllib's errors are OSErrors
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
        return response.read()
