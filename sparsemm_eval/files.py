"""Files: the user's cache, atomic writing, records that survive a kill, and the digest of this package."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import filelock

from sparsemm_eval.errors import ConfigError, JournalError, SparseMMError, reason_of

#: Packages whose source may decide a result, and that may be installed apart from each other.
PACKAGES = ("sparsemm_eval", "sparsemm_eval.model_wrappers", "sparsemm_eval.tasks")
_LINE = re.compile(rb'\{"sum": "([0-9a-f]{16})", (.*)\n', re.DOTALL)


def user_cache(*parts: str) -> Path:
    """A place in the user's cache folder; not made."""
    import platformdirs  # a GPU machine that runs the suite only need not have it

    return Path(platformdirs.user_cache_dir("sparsemm-eval"), *parts)


def users_path(given: str) -> Path:
    """A path as a user writes it: a ``~`` at its beginning is their home."""
    return Path(os.path.expanduser(given))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one step by what the block writes to the path it gets; folders are made.

    On disk when the block is left. After an exception the file is as before. The user's umask decides who may
    read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # On a full disk what was written would take the room that is missing.
        temporary.unlink(missing_ok=True)


def check_target(argument: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a file, or a folder of files, that cannot be written, before the work that it is for.

    Folders that are missing are not made yet.

    Raises
    ------
    ConfigError
        Naming the argument and the reason.
    """
    file = path / "file" if folder else path
    try:
        if "\0" in str(file):
            raise ValueError("embedded null byte")
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        standing = next(parent for parent in file.parents if parent.exists())
        probe = _beside(standing / file.name)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        what = "a folder that can be written to" if folder else "a file that can be written"
        raise ConfigError(argument, str(path), f"{what} ({reason_of(error)})") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step, on disk when this returns; folders are made."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: a killed process leaves the old one or the new one."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a value of JSON types; equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def source_digest() -> str:
    """Hex SHA-256 of all Python files of this package; a version number does not tell checkouts apart."""
    files = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        # a source checkout that is not installed has the first one only
        for folder in map(Path, spec.submodule_search_locations if spec else ()):
            for path in folder.rglob("*.py"):
                name = f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of(files)


class FileLock(filelock.FileLock):
    """A class of its own: lmms-eval makes every FileLock of a path the same object, held by whoever asks."""


def made_once(folder: Path, what: str, make: Callable[[Path], None]) -> Path:
    """A folder of the user's cache, which appears when `make` has filled the one it gets; made if missing.

    Raises
    ------
    SparseMMError
        If the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as place:
                    make(Path(place, "new"))
                    Path(place, "new").replace(folder)
    except OSError as error:
        raise SparseMMError(
            f"cannot keep {what} in {folder.parent} ({error}); XDG_CACHE_HOME names another cache"
        ) from error
    return folder


class RecordStore:
    """Records by key, on disk as JSON lines as soon as they are put down.

    A folder holds one file per writer, and the records of all writers are found. A line is an object with the
    record's own entries, its ``key``, and first of all ``sum``, a checksum of the rest. A last line that does
    not end, as a killed process leaves it, is dropped.

    Parameters
    ----------
    folder : pathlib.Path
        Made when missing.
    kind : str
        How the files' names begin: ``KIND-00000.jsonl`` for the first writer.
    writer : int
        No two processes write one file.
    unit : str
        What the records are, in the plural; for messages.
    elsewhere : str
        What a user can do who does not want to use this folder; for messages.

    Raises
    ------
    JournalError
        If another process writes the same file, or a file is damaged or cannot be used.
    """

    def __init__(self, folder: Path, kind: str, writer: int = 0, *, unit: str, elsewhere: str):
        self.path = folder / f"{kind}-{writer:05d}.jsonl"
        self.unit, self.elsewhere = unit, elsewhere
        self._places: dict[str, tuple[Path, int, int]] = {}  # key -> file, first byte, length
        with contextlib.ExitStack() as undo, explained(f"journal {self.path} cannot be used"):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock(undo)
            self._file = undo.enter_context(self.path.open("ab", buffering=0))
            for path in sorted(folder.glob(f"{kind}-*.jsonl")):
                end = 0
                for start, line, key, _ in _records(path, elsewhere):
                    end = start + len(line)
                    self._places[key] = (path, start, len(line))
                if path == self.path:
                    self._file.truncate(end)
            self._undo = undo.pop_all()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock; closing twice does no harm."""
        self._undo.close()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, Any]:
        path, start, length = self._places[key]
        with explained(f"journal {path} cannot be read"), path.open("rb") as file:
            file.seek(start)
            return _parse(file.read(length))[1]

    def append(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Put objects of JSON types down, each under a new key; they survive a kill at any later moment.

        Raises
        ------
        JournalError
            If they cannot be written, for instance because the disk is full.
        """
        lines = {key: _line(key, record) for key, record in records.items()}
        start = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(b"".join(lines.values()))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            # Later records must not follow half a line.
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise JournalError(
                f"journal {self.path} cannot be written; the {len(self)} {self.unit} before are safe, run "
                f"the same command again when there is room, or {self.elsewhere}: {error.strerror or error}"
            ) from error
        for key, line in lines.items():
            self._places[key] = (self.path, start, len(line))
            start += len(line)

    def recall(self, key: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of a key as JSON has it: known from before, or made and put down."""
        if key not in self:
            self.append({key: make()})
        return self[key]

    def _lock(self, undo: contextlib.ExitStack) -> None:
        lock = FileLock(f"{self.path}.lock", timeout=0)
        holder = Path(lock.lock_file)
        try:
            lock.acquire()
        except (filelock.Timeout, RuntimeError) as error:
            known = holder.read_text(encoding="utf-8", errors="replace").strip()
            raise JournalError(
                f"journal {self.path} is in use by {known or 'another run'}: wait for it, or {self.elsewhere}"
            ) from error
        undo.callback(lock.release)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        undo.callback(holder.write_text, "")


def read_records(path: Path, elsewhere: str) -> Iterator[dict[str, Any]]:
    """The records of one writer's file in order, also while it is written.

    Raises
    ------
    JournalError
        If the file is damaged or cannot be read.
    """
    with explained(f"journal {path} cannot be read"):
        for _, _, _, record in _records(path, elsewhere):
            yield record


def remove_records(folder: Path, kind: str) -> None:
    """Delete a store's files, and its folder if nothing else is in it."""
    for path in folder.glob(f"{kind}-*.jsonl*"):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _records(path: Path, elsewhere: str) -> Iterator[tuple[int, bytes, str, dict[str, Any]]]:
    """First byte, line, key and record of every whole line."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                key, record = _parse(line)
            except ValueError as error:
                what = f"is damaged in line {number}"
                remedy = "remove that line and run the same command again"
                if number == 1 and _lacks_a_checksum(line):
                    what = f"was written by another version of this package, or {what}"
                    remedy = "remove the file"
                raise JournalError(f"journal {path} {what}: {remedy}, or {elsewhere}") from error
            yield start, line, key, record
            start += len(line)


def _line(key: str, record: Mapping[str, Any]) -> bytes:
    content = json.dumps({"key": key, **record})[1:].encode()
    return b'{"sum": "%s", %s\n' % (_checksum(content), content)


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """Key and record; ValueError for anything but a line as it was written."""
    found = _LINE.fullmatch(line)
    if found is None or _checksum(found[2]) != found[1]:
        raise ValueError("the checksum differs")
    record = json.loads(b"{" + found[2])
    return record.pop("key"), record


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def _lacks_a_checksum(line: bytes) -> bool:
    """Whether a line is an object of JSON with anything but a checksum."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found) and "sum" not in found


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into a JournalError that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"{what}: {error.strerror or error}") from error
