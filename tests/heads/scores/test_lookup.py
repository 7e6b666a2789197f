import http.client
import json
import subprocess
import sys
import urllib.error

import pytest
import torch

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scores import lookup as head_score_lookup
from sparsemm_eval.heads.scores.lookup import PublishedTable, check_made_for, file_name, git_blob_id, resolve

CONTENT = json.dumps({"0-0": [1.0], "0-1": [3.0]}).encode()


def no_network(url):
    raise AssertionError(f"{url} was fetched")


@pytest.fixture(autouse=True)
def look(tmp_path, monkeypatch):
    """``resolve`` with the user's cache in a folder of the test, and with another download."""

    def resolved(scores, model_name=None, *, fetch=no_network, cache=tmp_path):
        monkeypatch.setattr(head_score_lookup, "cache_folder", lambda: cache)
        monkeypatch.setattr(head_score_lookup, "_download", fetch)
        return resolve(scores, model_name)

    return resolved


@pytest.fixture
def published(monkeypatch):
    table = PublishedTable("demo.json", git_blob_id(CONTENT), ("demo", "org/demo-7b"))
    monkeypatch.setattr(head_score_lookup, "PUBLISHED", (table,))
    return table


def test_git_blob_id_is_gits():
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_table_is_returned_as_it_is(look, tmp_path):
    scores = HeadScores(torch.ones(1, 2))
    assert look(scores) is scores


def test_an_explicit_file_wins_over_everything(look, tmp_path, published):
    path = tmp_path / "mine.json"
    HeadScores(torch.tensor([[5.0, 1.0]])).save(path)
    assert look(str(path), "org/demo-7b").table[0, 0] == 5


def test_shipped_scores_are_found_by_name(look, tmp_path):
    scores = look(None, "tiny-reader")
    assert (scores.num_layers, scores.num_heads) == (6, 8)
    assert look("tiny-reader", "something-else") == scores


def test_the_users_own_scores_come_before_published_ones(look, tmp_path, published):
    HeadScores(torch.tensor([[7.0, 1.0]])).save(tmp_path / file_name("org/demo-7b"))
    assert look(None, "org/demo-7b").table[0, 0] == 7


def test_published_scores_are_downloaded_once(look, tmp_path, published):
    fetched = []

    def fetch(url):
        fetched.append(url)
        return CONTENT

    for _ in range(2):
        assert look(None, "org/demo-7b", fetch=fetch).table.tolist() == [[1.0, 3.0]]
    assert len(fetched) == 1
    assert fetched[0].startswith("https://")


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(look, tmp_path, published):
    with pytest.raises(HeadScoreError, match="nothing was kept"):
        look("demo", fetch=lambda url: b"tampered")
    assert not list(tmp_path.rglob("*.json"))


def test_a_damaged_download_is_fetched_again(look, tmp_path, published):
    stored = tmp_path / "published" / "demo.json"
    stored.parent.mkdir()
    stored.write_bytes(CONTENT[:5])
    assert look("demo", fetch=lambda url: CONTENT).num_heads == 2


def test_no_network_is_said_with_a_way_out(look, tmp_path, published):
    def fetch(url):
        raise OSError("no route to host")

    with pytest.raises(HeadScoreError, match=r"no route to host.*pass head_scores=PATH"):
        look("demo", fetch=fetch)


def test_a_connection_that_breaks_is_tried_again(look, tmp_path, published, monkeypatch):
    monkeypatch.setattr(head_score_lookup.time, "sleep", lambda seconds: None)
    answers = [http.client.IncompleteRead(b""), ConnectionResetError("reset"), CONTENT]

    def fetch(url):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert look("demo", fetch=fetch).num_heads == 2
    fetched = []

    def missing(url):
        fetched.append(url)
        raise urllib.error.HTTPError(url, 404, "not found", None, None)

    with pytest.raises(HeadScoreError, match="not found"):
        look("demo", cache=tmp_path / "other", fetch=missing)
    assert len(fetched) == len(head_score_lookup.OFFICIAL_REFS)


def test_processes_that_start_together_download_once(tmp_path, published):
    """One fetches, the others wait for it."""
    code = """
import sys, time
from pathlib import Path
from sparsemm_eval.heads.scores import lookup
content, cache = bytes.fromhex(sys.argv[1]), Path(sys.argv[2])
lookup.PUBLISHED = (lookup.PublishedTable("demo.json", lookup.git_blob_id(content), ("demo",)),)
def fetch(url):
    (cache / f"fetched-{time.monotonic_ns()}").touch()
    time.sleep(0.5)
    return content
lookup.cache_folder, lookup._download = lambda: cache, fetch
print(lookup.resolve("demo").num_heads)
"""
    line = [sys.executable, "-c", code, CONTENT.hex(), str(tmp_path)]
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in started] == ["2"] * 4
    assert len(list(tmp_path.glob("fetched-*"))) == 1


def test_a_download_has_bounds(monkeypatch, tmp_path):
    (tmp_path / "large").write_bytes(bytes(3 * 2**17))
    url = (tmp_path / "large").as_uri()
    assert len(head_score_lookup._download(url)) == 3 * 2**17
    monkeypatch.setattr(head_score_lookup, "LARGEST_DOWNLOAD", 2**17)
    with pytest.raises(OSError, match="more than 131072 bytes"):
        head_score_lookup._download(url)
    monkeypatch.setattr(head_score_lookup, "DOWNLOAD_SECONDS", 0.0001)
    monkeypatch.setattr(head_score_lookup, "LARGEST_DOWNLOAD", 2**30)
    with pytest.raises(OSError, match="not complete after"):
        head_score_lookup._download(url)


def test_a_copy_finds_its_scores_by_the_folders_name(look, tmp_path, published):
    scores = look(None, "/data/models/demo-7b", fetch=lambda url: CONTENT)
    assert scores.provenance["model"] == "org/demo-7b"
    assert check_made_for(scores, "sha256:x", "/data/models/demo-7b") is None
    assert check_made_for(scores, "sha256:x", "org/demo-7b") is None
    (tmp_path / "mine.json").write_bytes(CONTENT)
    assert look(tmp_path / "mine.json").provenance["models"] == ["demo", "org/demo-7b"]


def test_scores_of_other_weights_are_refused(look, published, tmp_path):
    table = torch.ones(1, 2)
    own = HeadScores(table, {"model": "tiny", "weights": "sha256:a", "images": 200})
    assert check_made_for(own, "sha256:a", "any name") is None
    with pytest.raises(HeadScoreError, match="are of tiny with weights sha256:a, the model has sha256:b"):
        check_made_for(own, "sha256:b", "tiny")
    official = look("demo", fetch=lambda url: CONTENT)
    with pytest.raises(HeadScoreError, match=r"are of org/demo-7b, the model is org/other-7b: .*=True"):
        check_made_for(official, "sha256:a", "org/other-7b")
    with pytest.raises(HeadScoreError, match="are of org/x"):
        check_made_for(HeadScores(table, {"model": "org/x"}), "sha256:a", "org/y")


def test_scores_that_prove_little_are_warned_of():
    single = HeadScores(torch.ones(1, 2), {"weights": "sha256:a", "images": 1})
    assert check_made_for(single, "sha256:a", "m") == "head scores come from a single image"
    assert "which model" in check_made_for(HeadScores(torch.ones(1, 2)), "sha256:a", "m")


def test_an_unknown_name_lists_what_there_is(look, tmp_path):
    with pytest.raises(HeadScoreError, match=r"'nonsense' is neither a file nor.*tiny-reader.*llava-v1.6"):
        look("nonsense")


def test_an_unknown_model_says_what_to_do(look, tmp_path):
    with pytest.raises(HeadScoreError, match=r"'org/unknown'.*head_scores=PATH"):
        look(None, "org/unknown")
    with pytest.raises(HeadScoreError, match="no model name"):
        look(None, None)
