"""Files that survive: atomic texts, records with checksums, and the digest of the package."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsemm_eval import files
from sparsemm_eval.errors import ConfigError, JournalError
from sparsemm_eval.files import (
    RecordStore,
    check_target,
    digest_of,
    read_records,
    source_digest,
    write_text_atomically,
)

BYTES = base64.b64encode(bytes(range(200))).decode()
RECORDS = {"a": {"text": "é\n", "bytes": BYTES}, "b": {"list": [1, None]}, "c": {"number": 0.5}}


def store(folder, writer=0):
    return RecordStore(folder, "part", writer, unit="images", elsewhere="choose another folder")


@pytest.fixture
def written(tmp_path):
    with store(tmp_path) as records:
        records.append({"a": RECORDS["a"], "b": RECORDS["b"]})
        records.append({"c": RECORDS["c"]})
    return records.path


def test_records_come_back_equal_and_in_order(written, tmp_path):
    with store(tmp_path) as records:
        assert list(records) == ["a", "b", "c"]
        assert {key: records[key] for key in records} == RECORDS
        assert "d" not in records
    assert list(read_records(written, "")) == list(RECORDS.values())
    assert [json.loads(line)["key"] for line in written.read_text().splitlines()] == ["a", "b", "c"]


def test_what_is_known_is_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"made": (len(made),)}

    with store(tmp_path) as records:
        assert [records.recall(key, make)["made"] for key in "xxy"] == [[1], [1], [2]]
    with store(tmp_path) as records:
        assert records.recall("y", make) == {"made": [2]}


def test_all_writers_are_read_and_each_writes_its_own_file(written, tmp_path):
    with store(tmp_path, 1) as records:
        records.append({"d": {"value": 4}})
    before = written.read_bytes()
    with store(tmp_path, 1) as records:
        assert (list(records), records["a"], records["d"]) == (list("abcd"), RECORDS["a"], {"value": 4})
    assert written.read_bytes() == before


def test_a_torn_end_is_dropped_and_written_over(written, tmp_path):
    whole = written.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for torn in (*(whole[:-cut] for cut in (1, 9, last - 1)), whole[:-last] + b"\0" * 4096):
        written.write_bytes(torn)
        assert list(read_records(written, "")) == [RECORDS["a"], RECORDS["b"]]
        with store(tmp_path, 1) as other:
            assert "c" not in other
        assert written.read_bytes() == torn
        with store(tmp_path) as records:
            assert list(records) == ["a", "b"]
            records.append({"c": RECORDS["c"]})
        assert written.read_bytes() == whole


DAMAGE = {
    "an empty object": b"{}\n",
    "a list": b"[]\n",
    "a blank line": b"\n",
    "a block of NULs": b"\0" * 512 + b"\n",
    "invalid UTF-8": b"\xff\xfe\n",
    "another line without checksum": b'{"key": "x", "value": 1}\n',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_damage_in_the_middle_names_file_line_and_remedy(written, tmp_path, line):
    first, *rest = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([first, line, *rest]))
    message = r"part-00000\.jsonl is damaged in line 2: remove that line .* or choose another folder"
    with pytest.raises(JournalError, match=message):
        store(tmp_path)
    with pytest.raises(JournalError, match=message):
        store(tmp_path, 1)
    with pytest.raises(JournalError, match=message):
        list(read_records(written, "choose another folder"))
    written.write_bytes(b"".join([first, *rest]))
    with store(tmp_path) as records:  # no lock is left behind
        assert len(records) == 3


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_is_misread(written, tmp_path, data):
    whole = written.read_bytes()
    folder = tmp_path / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    place, bits = data.draw(st.integers(0, len(whole) - 2)), data.draw(st.integers(1, 255))
    changed = bytearray(whole)
    changed[place] ^= bits
    (folder / written.name).write_bytes(changed)
    with pytest.raises(JournalError, match="is damaged in line"):
        store(folder)


def test_an_earlier_layout_is_refused(tmp_path):
    (tmp_path / "part-00000.jsonl").write_text('{"key": "x", "run": "y", "text": "z"}\n')
    with pytest.raises(JournalError, match=r"by another version .* remove the file, or choose another"):
        store(tmp_path)


def test_a_second_writer_of_a_file_is_refused(written, tmp_path):
    lock = f"{written}.lock"
    code = f"import filelock; x = filelock.FileLock({lock!r}); x.acquire(); print('locked'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(JournalError, match=r"part-00000\.jsonl is in use by another run: wait for it"):
            store(tmp_path)
        other.kill()
        other.wait()
    with store(tmp_path) as records:
        with pytest.raises(JournalError, match=f"in use by process {os.getpid()} on .+: wait for it"):
            store(tmp_path)
        records.append({"d": {}})


def test_a_full_disk_loses_nothing_and_leaves_no_half_line(written, tmp_path, monkeypatch):
    with store(tmp_path) as records:

        def full(descriptor):
            raise OSError(28, os.strerror(28))

        before = written.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(JournalError, match=r"3 images before are safe, .*: No space left"):
                records.append({"d": {}})
        assert written.read_bytes() == before
        assert "d" not in records
        records.append({"d": {"value": 5}})
        assert records["d"] == {"value": 5}


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"file.* cannot be used: "):
        store(tmp_path / "file")
    with pytest.raises(JournalError, match="cannot be read: No such file"):
        list(read_records(tmp_path / "part-0.jsonl", ""))


def test_the_source_digest_covers_wrappers_and_tasks(tmp_path, monkeypatch):
    copy, found = {}, {name: files.importlib.util.find_spec(name) for name in files.PACKAGES}
    for name, spec in found.items():
        copy[name] = tmp_path / name
        shutil.copytree(
            spec.submodule_search_locations[0], copy[name], ignore=lambda *_: ["checkpoints", "data"]
        )
        spec.submodule_search_locations = [str(copy[name])]
    monkeypatch.setattr(files.importlib.util, "find_spec", found.__getitem__)
    assert source_digest.__wrapped__() == source_digest()
    digests = {source_digest()}
    for name in files.PACKAGES:
        with (copy[name] / "__init__.py").open("a") as file:
            file.write("\n")
        digests.add(source_digest.__wrapped__())
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("there", False, "a file that can be written (Is a directory)"),
        ("file/x", False, "a file that can be written (Not a directory)"),
        ("file", True, "a folder that can be written to (Not a directory)"),
        ("n" * 250, False, "a file that can be written (File name too long)"),
        ("a\0b", False, "a file that can be written (embedded null byte)"),
        ("a\0b", True, "a folder that can be written to (embedded null byte)"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(name, folder, reason, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        check_target("out", tmp_path / name, folder=folder)
    assert str(refused.value).startswith("out=")


@pytest.mark.parametrize("name", ["file", "new", "new/deep/file"])
@pytest.mark.parametrize("folder", [False, True])
def test_checking_a_target_leaves_nothing_behind(name, folder, tmp_path):
    if not folder:
        (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    check_target("out", tmp_path / name, folder=folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_users_umask_decides_who_may_read_a_file(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_text_atomically(tmp_path / "f", "")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask


def test_digests_follow_content_not_order():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
