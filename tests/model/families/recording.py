"""What upstream's wrappers feed their models: requests in, recorded model inputs out."""

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask


def requests_of(context, images, gen_kwargs, chat):
    """One request with its own document."""
    if chat:
        arguments = (
            context,
            lambda _: ConfigurableMessagesTask._build_user_turn(images, context),
            gen_kwargs,
        )
    else:
        arguments = (context, gen_kwargs, lambda _: images)
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return [
        Instance(
            request_type="generate_until", arguments=(*arguments, 0, "task", "test"), idx=0, metadata=metadata
        )
    ]


def inputs_of_upstream(wrapper, context, images, gen_kwargs, chat):
    """The tensors that upstream's wrapper passes to ``generate``."""
    recorded = {}

    def generate(**inputs):
        recorded.update(inputs)
        return inputs["input_ids"]

    wrapper._model.generate = generate
    wrapper.task_dict["task"] = {"test": [{}]}
    try:
        wrapper.generate_until(requests_of(context, images, dict(gen_kwargs), chat))
    finally:
        del wrapper._model.generate
    return recorded


def inputs_of_ours(wrapper, context, images, gen_kwargs, chat):
    """The tensors that our wrapper passes to ``generate``."""
    from sparsemm_eval.model_wrappers.answering.answerer import Answerer
    from sparsemm_eval.model_wrappers.answering.generation import Defaults
    from sparsemm_eval.model_wrappers.answering.samples import read_requests

    instances = requests_of(context, images, dict(gen_kwargs), chat)
    (request,), _ = read_requests(instances, chat, Defaults(wrapper.family.default_max_new_tokens))
    sample = wrapper._loop.reader.read(request, {"task": {"test": [{}]}})
    answerer = Answerer(wrapper.model, wrapper.processor, wrapper.family, None, wrapper.device)
    return answerer.encode([sample]), request.settings
