import json

import pytest
import torch

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scores import lookup as head_score_lookup
from sparsemm_eval.heads.scores.lookup import PublishedTable, file_name, git_blob_id, resolve

CONTENT = json.dumps({"0-0": [1.0], "0-1": [3.0]}).encode()


def no_network(url):
    raise AssertionError(f"{url} was fetched")


@pytest.fixture
def published(monkeypatch):
    table = PublishedTable("demo.json", git_blob_id(CONTENT), ("demo", "org/demo-7b"))
    monkeypatch.setattr(head_score_lookup, "PUBLISHED", (table,))
    return table


def test_git_blob_id_is_gits():
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_table_is_returned_as_it_is(tmp_path):
    scores = HeadScores(torch.ones(1, 2))
    assert resolve(scores, cache=tmp_path, fetch=no_network) is scores


def test_an_explicit_file_wins_over_everything(tmp_path, published):
    path = tmp_path / "mine.json"
    HeadScores(torch.tensor([[5.0, 1.0]])).save(path)
    assert resolve(str(path), "org/demo-7b", cache=tmp_path, fetch=no_network).table[0, 0] == 5


def test_shipped_scores_are_found_by_name(tmp_path):
    scores = resolve(None, "tiny-reader", cache=tmp_path, fetch=no_network)
    assert (scores.num_layers, scores.num_heads) == (6, 8)
    assert resolve("tiny-reader", "something-else", cache=tmp_path, fetch=no_network) == scores


def test_the_users_own_scores_come_before_published_ones(tmp_path, published):
    HeadScores(torch.tensor([[7.0, 1.0]])).save(tmp_path / file_name("org/demo-7b"))
    assert resolve(None, "org/demo-7b", cache=tmp_path, fetch=no_network).table[0, 0] == 7


def test_published_scores_are_downloaded_once(tmp_path, published):
    fetched = []

    def fetch(url):
        fetched.append(url)
        return CONTENT

    for _ in range(2):
        assert resolve(None, "org/demo-7b", cache=tmp_path, fetch=fetch).table.tolist() == [[1.0, 3.0]]
    assert len(fetched) == 1
    assert fetched[0].startswith("https://")


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(tmp_path, published):
    with pytest.raises(HeadScoreError, match="nothing was kept"):
        resolve("demo", cache=tmp_path, fetch=lambda url: b"tampered")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_download_is_fetched_again(tmp_path, published):
    stored = tmp_path / "published" / "demo.json"
    stored.parent.mkdir()
    stored.write_bytes(CONTENT[:5])
    assert resolve("demo", cache=tmp_path, fetch=lambda url: CONTENT).num_heads == 2


def test_no_network_is_said_with_a_way_out(tmp_path, published):
    def fetch(url):
        raise OSError("no route to host")

    with pytest.raises(HeadScoreError, match=r"no route to host.*pass head_scores=PATH"):
        resolve("demo", cache=tmp_path, fetch=fetch)


def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(HeadScoreError, match=r"'nonsense' is neither a file nor.*tiny-reader.*llava-v1.6"):
        resolve("nonsense", cache=tmp_path, fetch=no_network)


def test_an_unknown_model_says_what_to_do(tmp_path):
    with pytest.raises(HeadScoreError, match=r"'org/unknown'.*head_scores=PATH"):
        resolve(None, "org/unknown", cache=tmp_path, fetch=no_network)
    with pytest.raises(HeadScoreError, match="no model name"):
        resolve(None, None, cache=tmp_path, fetch=no_network)
