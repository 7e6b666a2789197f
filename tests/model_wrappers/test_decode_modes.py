"""The decode and kernel model_args."""

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.families.llava import FAMILY
from sparsemm_eval.model_wrappers.arguments import Arguments
from tests.model_wrappers.helpers import answers_of


def parse(**given):
    return Arguments.parse(given, "llava_snapkv", FAMILY)


def test_defaults():
    assert (parse().decode, parse().kernel) == ("eager", "auto")
    assert parse(decode="graph", kernel="torch").decode == "graph"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [("decode", "fast", "eager, compile, graph, fused"), ("kernel", "cuda", "triton")],
)
def test_unknown_values_are_refused(name, value, remedy):
    with pytest.raises(ConfigError, match=remedy):
        parse(**{name: value})


def test_several_devices_decode_eagerly_only():
    with pytest.raises(ConfigError, match=r"decode='graph'.*device_map=auto"):
        parse(decode="graph", device_map="auto")
    assert parse(device_map="auto").decode == "eager"


@pytest.mark.parametrize("name", ["llava_sparsemm", "qwen2vl_snapkv", "llava_fullkv"])
def test_the_same_answers_in_every_mode(build_wrapper, documents, score_files, name):
    reader = "tiny-reader" if name.startswith("llava") else "tiny-reader-qwen2vl"
    knobs = {} if name.endswith("fullkv") else {"budget": 40, "window": 8}
    if name.endswith("sparsemm"):
        knobs["head_scores"] = score_files[reader]
    settings = {"max_new_tokens": 9, "until": ["e"]}
    eager = build_wrapper(name, batch_size=3, **knobs)
    truth = answers_of(eager, documents, gen_kwargs=settings)
    for decode in ("graph", "compile"):
        other = build_wrapper(name, batch_size=3, decode=decode, **knobs)
        assert answers_of(other, documents, gen_kwargs=settings) == truth
        assert other.identity["decode"] == decode
        assert other.identity["kernel"] == "torch"
        assert other.identity != eager.identity


def test_sampled_answers_are_the_same_too(build_wrapper, documents):
    settings = {"max_new_tokens": 9, "temperature": 0.8, "top_p": 0.9}
    truth = answers_of(build_wrapper("llava_snapkv"), documents[:2], gen_kwargs=settings)
    graph = build_wrapper("llava_snapkv", decode="graph")
    assert answers_of(graph, documents[:2], gen_kwargs=settings) == truth
