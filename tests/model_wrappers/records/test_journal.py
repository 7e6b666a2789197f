import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import JournalError
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.answering.generation import GenerationSettings
from sparsemm_eval.model_wrappers.answering.samples import Request, Sample
from sparsemm_eval.model_wrappers.records.journal import (
    Journal,
    journal_folder,
    read_identity,
    read_journal,
)
from tests.model_wrappers.helpers import TASK, answers_of, make_requests

MEASURED = Measurement(
    100, 31.5, np.arange(12, dtype=np.int32).reshape(3, 4), 7, 9, 12, 1, 2.5, 11, 0.5, 0.0, None, 0.5
)


def sample(doc_id, digest=None):
    request = Request(doc_id, TASK, doc_id, "test", 0, "", None, GenerationSettings((), 5))
    return Sample(request, "", (), 1, digest or f"digest {doc_id}")


def answer(doc_id, text="é answer"):
    return Answer(TASK, doc_id, 0, text, (3, 4, 5), MEASURED)


@pytest.fixture
def open_journal(tmp_path):
    opened = []

    def make(run="run", rank=0, task=TASK):
        journal = Journal(tmp_path / "journal", {"model_name": "llava_fullkv"}, run, rank)
        opened.append(journal)
        journal.open_task(task)
        return journal

    yield make
    for journal in opened:
        journal.close()


def test_answers_come_back_equal(open_journal):
    journal = open_journal()
    journal.append([sample(1), sample(2)], [answer(1), answer(2, "")])
    journal.close()
    found = open_journal().find(sample(2))
    assert (found.text, found.tokens, found.task, found.doc_id) == ("", (3, 4, 5), TASK, 2)
    np.testing.assert_array_equal(found.measured.kept, MEASURED.kept)
    assert found.measured.decode_seconds_per_step is None


def test_other_runs_and_other_samples_are_not_found(open_journal):
    journal = open_journal()
    journal.append([sample(1)], [answer(1)])
    assert journal.find(sample(1)) is not None
    assert journal.find(sample(1, "another prompt")) is None
    journal.close()
    assert open_journal(run="another config").find(sample(1)) is None


def test_an_answer_measured_with_other_evidence_is_not_found(open_journal):
    journal = open_journal()
    marked = replace(sample(1), evidence=(3, 4))
    journal.append([marked], [answer(1)])
    assert journal.find(marked) is not None
    assert journal.find(sample(1)) is None
    assert journal.find(replace(marked, evidence=(3, 5))) is None


def test_an_answer_is_written_once(open_journal, tmp_path):
    journal = open_journal()
    journal.append([sample(1)], [answer(1)])
    journal.append([sample(1), sample(2)], [answer(1), answer(2)])
    assert [record["doc_id"] for record in read_journal(tmp_path / "journal")] == [1, 2]


def test_a_torn_last_line_is_dropped_and_overwritten(open_journal, tmp_path):
    journal = open_journal()
    journal.append([sample(1), sample(2)], [answer(1), answer(2)])
    journal.close()
    path = tmp_path / "journal" / TASK / "rank-00000.jsonl"
    whole = path.read_bytes()
    for cut in (1, 50, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        journal = open_journal()
        assert journal.find(sample(2)) is None
        journal.append([sample(1), sample(2)], [answer(1), answer(2)])
        journal.close()
        assert path.read_bytes() == whole


def test_damage_in_the_middle_is_named(open_journal, tmp_path):
    journal = open_journal()
    journal.append([sample(1)], [answer(1)])
    journal.close()
    path = tmp_path / "journal" / TASK / "rank-00000.jsonl"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(JournalError, match=r"rank-00000\.jsonl is damaged in line 1"):
        open_journal()


def test_a_journal_of_an_earlier_version_is_refused(open_journal, tmp_path):
    path = tmp_path / "journal" / TASK / "rank-00000.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"key": "k", "run": "run", "sample": "s", "text": "an answer"}\n')
    with pytest.raises(JournalError, match=r"rank-00000\.jsonl was written by another version.*journal=PATH"):
        open_journal()
    with pytest.raises(JournalError, match="another version"):
        list(read_journal(tmp_path / "journal"))


def test_a_changed_answer_is_never_read(open_journal, tmp_path):
    journal = open_journal()
    journal.append([sample(1), sample(2)], [answer(1), answer(2)])
    journal.close()
    path = tmp_path / "journal" / TASK / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b" answer", b" ANSWER", 1))
    with pytest.raises(JournalError, match=r"damaged in line 1: remove that line .* journal=off"):
        open_journal()


def test_ranks_write_their_own_files_and_read_all(open_journal, tmp_path):
    for rank in (0, 1):
        journal = open_journal(rank=rank)
        journal.append([sample(rank)], [answer(rank)])
        journal.close()
    assert len(list((tmp_path / "journal" / TASK).glob("rank-*.jsonl"))) == 2
    journal = open_journal(rank=0)
    assert journal.find(sample(0)) is not None
    assert journal.find(sample(1)) is not None


def test_a_second_run_is_refused_while_the_first_writes(open_journal, tmp_path):
    journal = open_journal()
    journal.close()
    lock = tmp_path / "journal" / TASK / "rank-00000.jsonl.lock"
    code = f"import filelock; x = filelock.FileLock({str(lock)!r}); x.acquire(); print('locked'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(JournalError, match="is in use by another run"):
            open_journal()
        other.kill()
        other.wait()
    open_journal()


def test_tasks_do_not_lock_each_other(open_journal):
    open_journal(task="one")
    open_journal(task="two/three")


def test_a_full_disk_is_an_error_and_nothing_before_is_lost(open_journal, monkeypatch):
    journal = open_journal()
    journal.append([sample(1)], [answer(1)])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsemm_eval.files.os.fsync", full)
    with pytest.raises(JournalError, match=r"1 answers before are safe.*No space left on device"):
        journal.append([sample(2)], [answer(2)])
    monkeypatch.undo()
    journal.close()
    assert open_journal().find(sample(1)) is not None


def test_a_full_disk_stops_the_run_even_when_samples_may_be_skipped(
    build_wrapper, documents, tmp_path, monkeypatch
):
    wrapper = build_wrapper(on_error="skip", max_skipped=1, journal=str(tmp_path / "journal"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsemm_eval.files.os.fsync", full)
    with pytest.raises(JournalError, match="No space left"):
        answers_of(wrapper, documents)


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert journal_folder("off", "llava_fullkv", "abc") is None
    assert str(journal_folder("auto", "llava_fullkv", "abc" * 20)).startswith(str(tmp_path))
    assert str(journal_folder("some/where", "llava_fullkv", "abc")) == "some/where"


def test_an_unusable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(tmp_path / "file", {}, "run", 0)


def test_the_identity_explains_a_run(open_journal, tmp_path):
    open_journal()
    assert read_identity(tmp_path / "journal", "run") == {"model_name": "llava_fullkv"}


def test_a_run_taken_up_again_generates_the_rest_only(build_wrapper, documents, tmp_path):
    given = {"journal": str(tmp_path / "journal"), "batch_size": 2}
    whole = answers_of(build_wrapper(batch_size=2), documents)
    first = build_wrapper(**given)
    assert answers_of(first, documents) == whole
    first.clean()
    path = tmp_path / "journal" / TASK / "rank-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    second = build_wrapper(**given)
    calls = []
    original = second.model.generate
    second.model.generate = lambda **inputs: calls.append(len(inputs["input_ids"])) or original(**inputs)
    assert answers_of(second, documents) == whole
    second.clean()
    # Three answers of six are left: the torn batch is answered again as a whole.
    assert calls == [2, 2]
    assert second.run_record["measured"]["samples_restored"] == 3

    def stable(line):
        record = json.loads(line)
        for name in ("prefill_seconds", "decode_seconds_per_step", "seconds"):
            del record["measured"][name]
        del record["sum"]
        return record

    assert [stable(line) for line in path.read_bytes().splitlines()] == [stable(line) for line in lines]


@pytest.mark.parametrize(
    "changed",
    [
        {"budget": 48},
        {"window": 9},
        {"kernel_size": 7},
        {"dtype": "bfloat16"},
        {"system_prompt": "Be brief."},
    ],
)
def test_a_changed_knob_never_reuses_an_answer(build_wrapper, documents, tmp_path, changed):
    given = {"journal": str(tmp_path / "journal"), "budget": 40, "window": 8}
    first = build_wrapper("llava_snapkv", **given)
    answers_of(first, documents[:2])
    first.clean()
    second = build_wrapper("llava_snapkv", **{**given, **changed})
    answers_of(second, documents[:2])
    second.clean()
    assert second.run_record["measured"]["samples_restored"] == 0


def test_changed_weights_and_changed_scores_are_other_runs(build_wrapper, score_files, tmp_path, checkpoints):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["tiny-reader"], folder)
    same = build_wrapper(pretrained=str(folder)).identity["checkpoint"]
    assert same == build_wrapper().identity["checkpoint"]
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + torch.tensor(0.5, dtype=weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert build_wrapper(pretrained=str(folder)).identity["checkpoint"] != same
    other_scores = tmp_path / "scores.json"
    table = HeadScores.load(score_files["tiny-reader"]).table.flip(0)
    HeadScores.from_array(table).save(other_scores)
    one, other = (
        build_wrapper("llava_sparsemm", head_scores=str(path)).identity["head_scores"]
        for path in (score_files["tiny-reader"], other_scores)
    )
    assert one != other


def test_another_seed_never_reuses_a_sampled_answer(build_wrapper, documents, tmp_path):
    settings = {"gen_kwargs": {"max_new_tokens": 4, "do_sample": True, "temperature": 3.0}}
    texts = {}
    with torch.random.fork_rng():
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            wrapper = build_wrapper(journal=str(tmp_path / "journal"))
            found = answers_of(wrapper, documents[:3], **settings)
            wrapper.clean()
            again = wrapper.run_record["measured"]["samples_restored"]
            assert again == (3 if seed in texts else 0)
            assert texts.setdefault(seed, found) == found
    assert texts[1] != texts[2]


def test_sampled_answers_are_journaled_per_repeat(build_wrapper, documents, tmp_path):
    given = {"journal": str(tmp_path / "journal")}
    settings = {"gen_kwargs": {"max_new_tokens": 4, "do_sample": True, "temperature": 3.0}, "repeats": 2}
    first = build_wrapper(**given)
    texts = answers_of(first, documents[:2], **settings)
    first.clean()
    second = build_wrapper(**given)
    assert answers_of(second, documents[:2], **settings) == texts
    second.clean()
    assert second.run_record["measured"]["samples_restored"] == 4
    assert len(make_requests(documents[:2], chat=True, **settings)) == 4
