import pytest
import torch

from sparsemm_eval.errors import ConfigError, HeadScoreError, UnsupportedError
from sparsemm_eval.methods import methods
from sparsemm_eval.model_wrappers.answering.samples import SampleError
from tests.model_wrappers.helpers import TASK, answers_of, make_requests, wrapper_class

FAMILIES = {"llava": ("tiny-reader", "tiny-reader-mistral"), "qwen2vl": ("tiny-reader-qwen2vl",)}
CASES = [
    (family, method, reader)
    for family, readers in FAMILIES.items()
    for reader in readers
    for method in methods()
]


def arguments_for(method, reader, score_files):
    rule = methods()[method]
    given = {"budget": 40, "window": 8}
    if "head_scores" in rule.needs:
        given["head_scores"] = score_files[reader]
    if rule.mask is not None:
        given["mask_ratio"] = 0.1
    return given


@pytest.mark.parametrize(("family", "method", "reader"), CASES)
def test_answers_do_not_depend_on_the_batch_size(
    family, method, reader, build_wrapper, score_files, documents
):
    name, given = f"{family}_{method}", arguments_for(method, reader, score_files)
    texts = {}
    for batch_size in (1, 4):  # the second batch has another size
        wrapper = build_wrapper(name, reader=reader, batch_size=batch_size, **given)
        requests = make_requests(documents, chat=not wrapper.is_simple)
        results = wrapper.generate_until(requests)
        texts[batch_size] = [(result.text, result.token_counts.to_dict()) for result in results]
    assert texts[1] == texts[4]
    budgets = [counts["effective_budget"] for _, counts in texts[1]]
    if methods()[method].evicts:
        assert max(budgets) <= 41  # PyramidKV and SparseMM round per layer and head
    else:
        assert max(budgets) > 100


def test_masking_changes_answers_and_random_heads_are_others(build_wrapper, score_files, documents):
    given = {"head_scores": score_files["tiny-reader"], "mask_ratio": 0.3}
    plain = answers_of(build_wrapper("llava_fullkv"), documents)
    visual = build_wrapper("llava_mask", **given)
    random = build_wrapper("llava_mask_random", **given)
    assert answers_of(visual, documents) != plain
    best, drawn = (set(map(tuple, one.identity["masked_heads"])) for one in (visual, random))
    assert not best & drawn
    assert len(best) == len(drawn) == round(0.3 * 48)
    other = build_wrapper("llava_mask_random", mask_seed=1, **given)
    assert other.identity["masked_heads"] != random.identity["masked_heads"]


@pytest.mark.parametrize("reader", ["tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl"])
def test_the_family_of_vlm_is_the_checkpoints(reader, build_wrapper, documents):
    family = "qwen2vl" if "qwen2vl" in reader else "llava"
    own = build_wrapper(f"{family}_snapkv", reader=reader, budget=40, window=8)
    found = build_wrapper("vlm_snapkv", reader=reader, budget=40, window=8)
    assert found.family is own.family
    assert answers_of(found, documents) == answers_of(own, documents)
    if family == "llava":
        with pytest.raises(ConfigError, match="max_pixels=4000"):
            build_wrapper("vlm_snapkv", reader=reader, max_pixels=4000)


def test_results_are_in_the_requests_order(build_wrapper, documents):
    wrapper = build_wrapper(batch_size=2)
    forward = answers_of(wrapper, documents)
    requests = make_requests(documents, chat=True)
    backward = [result.text for result in wrapper.generate_until(requests[::-1])]
    assert backward[::-1] == forward
    assert len(set(forward)) > 1


def test_requests_with_other_gen_kwargs_keep_to_themselves(build_wrapper, documents):
    wrapper = build_wrapper(batch_size=4)
    # random weights must not end an answer by chance: end and padding tokens beyond the vocabulary
    beyond = wrapper.model.config.get_text_config().vocab_size
    wrapper.model.generation_config.eos_token_id = wrapper.model.generation_config.pad_token_id = beyond
    short = make_requests(documents[:2], chat=True, gen_kwargs={"max_new_tokens": 2})
    long = make_requests(documents[:2], chat=True, gen_kwargs={"max_new_tokens": 6})
    results = wrapper.generate_until([short[0], long[0], short[1], long[1]])
    assert [result.token_counts.output_tokens for result in results] == [2, 6, 2, 6]
    assert short[0].args[2] == {"max_new_tokens": 2}


def test_until_ends_an_answer(build_wrapper, documents):
    wrapper = build_wrapper("qwen2vl_fullkv")
    (whole,) = wrapper.generate_until(
        make_requests(documents[:1], chat=False, gen_kwargs={"max_new_tokens": 20})
    )
    stop = whole.text[3:5]
    assert whole.text.index(stop) == 3
    (cut,) = wrapper.generate_until(
        make_requests(documents[:1], chat=False, gen_kwargs={"max_new_tokens": 20, "until": [stop]})
    )
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.token_counts.output_tokens < whole.token_counts.output_tokens


def test_sampling_is_repeatable_and_repeats_differ(build_wrapper, documents):
    wrapper = build_wrapper()
    gen_kwargs = {"max_new_tokens": 8, "do_sample": True, "temperature": 5.0}
    first = answers_of(wrapper, documents, gen_kwargs=gen_kwargs, repeats=2)
    torch.rand(3)  # what others draw does not matter
    assert answers_of(wrapper, documents, gen_kwargs=gen_kwargs, repeats=2) == first
    assert first[0] != first[1]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_sampled_answers_do_not_depend_on_the_batch(build_wrapper, documents, batch_size):
    gen_kwargs = {"max_new_tokens": 8, "temperature": 1.5, "top_k": 20, "repetition_penalty": 1.1}
    alone = answers_of(build_wrapper(), documents, gen_kwargs=gen_kwargs, repeats=2)
    assert (
        answers_of(build_wrapper(batch_size=batch_size), documents, gen_kwargs=gen_kwargs, repeats=2) == alone
    )


def test_beam_search_is_refused_with_the_samples_name(build_wrapper, documents):
    with pytest.raises(SampleError, match=f"^{TASK}/0: num_beams=2"):
        answers_of(build_wrapper(), documents, gen_kwargs={"num_beams": 2})


def test_other_request_types_are_refused(build_wrapper):
    wrapper = build_wrapper()
    with pytest.raises(UnsupportedError, match="llava_fullkv"):
        wrapper.loglikelihood([])
    with pytest.raises(UnsupportedError, match="llava_fullkv"):
        wrapper.generate_until_multi_round([])


def test_padding_requests_are_neither_answered_nor_counted(build_wrapper, documents):
    wrapper = build_wrapper()
    requests = make_requests(documents[:2], chat=True)
    requests[1].metadata["__padding_only__"] = True
    results = wrapper.generate_until(requests)
    assert results[1].token_counts is None
    wrapper.clean()
    assert wrapper.run_record["measured"]["samples"] == 1


def test_the_model_is_as_before_afterwards_also_after_an_error(build_wrapper, documents):
    wrapper = build_wrapper("llava_snapkv", budget=40, window=8)
    hooks = [len(module._forward_pre_hooks) for module in wrapper.model.modules()]
    answers_of(wrapper, documents)
    with pytest.raises(SampleError):
        answers_of(wrapper, [{"image": "missing.png", "question": "?"}] * 2, task="other")
    assert [len(module._forward_pre_hooks) for module in wrapper.model.modules()] == hooks
    assert "generate" not in vars(wrapper.model)


def test_head_scores_of_another_reader_are_refused_and_named():
    line = "pretrained=tiny-reader,budget=32,window=8,journal=off,head_scores={}"
    create = wrapper_class("llava_sparsemm").create_from_arg_string
    with pytest.raises(HeadScoreError, match=r"are of tiny-reader-mistral with weights sha256:18e94e"):
        create(line.format("tiny-reader-mistral"))
    wrapper = create(line.format("tiny-reader-mistral,foreign_head_scores=True"))
    assert wrapper._report.names == {
        "head_scores_name": "tiny-reader-mistral",
        "head_scores_model": "tiny-reader-mistral",
    }
    assert create(line.format("tiny-reader"))._report.names["head_scores_model"] == "tiny-reader"


def test_clean_frees_the_model_and_reports(build_wrapper, documents):
    wrapper = build_wrapper("llava_snapkv", budget=40, window=8)
    answers_of(wrapper, documents)
    wrapper.clean()
    assert not hasattr(wrapper, "_model")
    measured = wrapper.run_record["measured"]
    assert measured["samples"] == len(documents)
    assert measured["effective_budget"] < measured["prompt_tokens_per_sample"]
    assert measured["effective_budget_max"] == 40
    assert measured["kv_bytes_per_sample"] < measured["kv_bytes_full_per_sample"]


def test_command_line_arguments_merge(checkpoints):
    cls = wrapper_class("llava_fullkv")
    base = f"pretrained={checkpoints['tiny-reader']},journal=off"
    wrapper = cls.create_from_arg_string(f"{base},batch_size=3", {"batch_size": 1, "device": "cpu"})
    assert wrapper.batch_size == 3
    assert cls.create_from_arg_string(base, {"batch_size": "2", "device": "cpu"}).batch_size == 2
    with pytest.raises(ConfigError, match="batch_size"):
        cls.create_from_arg_string(f"{base},batch_size=3", {"batch_size": "4"})
    with pytest.raises(ConfigError, match="device"):
        cls.create_from_arg_string(f"{base},device=cpu", {"device": "cuda"})
    with pytest.raises(ConfigError, match="model_args"):
        cls.create_from_arg_string("pretrained", {})


def test_wrong_head_scores_are_refused(build_wrapper, score_files, tmp_path):
    with pytest.raises(HeadScoreError, match="6 layers, 7 query heads"):
        build_wrapper("llava_sparsemm", head_scores=score_files["tiny-reader-qwen2vl"])
    with pytest.raises(HeadScoreError, match="no such"):
        build_wrapper("llava_sparsemm", head_scores="no such")
    with pytest.raises(HeadScoreError, match="no head scores"):
        build_wrapper("llava_sparsemm")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(HeadScoreError, match="JSON"):
        build_wrapper("llava_sparsemm", head_scores=str(broken))


def test_lmms_evals_interface(build_wrapper):
    wrapper = build_wrapper()
    assert (wrapper.rank, wrapper.world_size) == (0, 1)
    assert wrapper.device == torch.device("cpu")
    assert wrapper.accelerator.num_processes == 1
    assert wrapper.model.dtype == torch.float32
    assert wrapper.config.model_type == "llava_next"
    assert wrapper.tokenizer.padding_side == "left"
