import pytest

from sparsemm_eval.model_wrappers.answering.generation import Defaults
from sparsemm_eval.model_wrappers.answering.samples import SampleError, read_requests
from tests.model_wrappers.helpers import TASK, make_requests, to_messages, to_visual

DEFAULTS = Defaults(128, seed=3)
DOCUMENTS = [{"image": None, "question": text} for text in ("one", "two", "three")]


@pytest.mark.parametrize(("chat", "visuals"), [(True, to_messages), (False, to_visual)])
def test_both_protocols_are_read(chat, visuals):
    requests, unused = read_requests(make_requests(DOCUMENTS, chat), chat, DEFAULTS)
    assert [(request.task, request.doc_id, request.context) for request in requests] == [
        (TASK, 0, "one"),
        (TASK, 1, "two"),
        (TASK, 2, "three"),
    ]
    assert requests[0].visuals is visuals
    assert requests[0].settings.max_new_tokens == 5
    assert unused == set()


def test_repeats_are_numbered():
    requests, _ = read_requests(make_requests(DOCUMENTS[:2], True, repeats=3), True, DEFAULTS)
    assert [request.repeat for request in requests] == [0, 1, 2, 0, 1, 2]
    assert [request.name for request in requests][:2] == [f"{TASK}/0", f"{TASK}/0#1"]


def test_padding_is_left_out_and_positions_stay():
    instances = make_requests(DOCUMENTS, True)
    instances[1].metadata["__padding_only__"] = True
    requests, _ = read_requests(instances, True, DEFAULTS)
    assert [request.index for request in requests] == [0, 2]


def test_gen_kwargs_without_meaning_are_named():
    _, unused = read_requests(
        make_requests(DOCUMENTS, True, {"length_penalty": 2, "until": []}), True, DEFAULTS
    )
    assert unused == {"length_penalty"}


def test_wrong_gen_kwargs_name_task_and_document():
    with pytest.raises(SampleError, match=f"^{TASK}/0: max_new_tokens=-1"):
        read_requests(make_requests(DOCUMENTS, True, {"max_new_tokens": -1}), True, DEFAULTS)
