"""Reading lmms-eval's requests, whatever its protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmms_eval.api.instance import Instance

from sparsemm_eval.model_wrappers.answering.generation import Defaults, GenerationSettings
from sparsemm_eval.model_wrappers.answering.samples import Request, SampleError


def is_padding(instance: Instance) -> bool:
    """Whether a request only evens out the processes' numbers of requests; its answer is never scored."""
    return bool((instance.metadata or {}).get("__padding_only__"))


def read_requests(
    instances: Sequence[Instance], chat: bool, defaults: Defaults
) -> tuple[list[Request], set[str]]:
    """All requests to answer, padding left out.

    Parameters
    ----------
    instances : sequence of Instance
    chat : bool
        ``(context, messages, gen_kwargs, doc_id, task, split)`` instead of
        ``(context, gen_kwargs, visuals, doc_id, task, split)``.
    defaults : Defaults
        For what gen_kwargs leave open.

    Returns
    -------
    requests, unused
        ``unused``: names of gen_kwargs without meaning here.

    Raises
    ------
    SampleError
        If a request's gen_kwargs cannot be followed.
    """
    requests: list[Request] = []
    unused: set[str] = set()
    seen: Counter[tuple] = Counter()
    for index, instance in enumerate(instances):
        if is_padding(instance):
            continue
        if chat:
            context, visuals, gen_kwargs, doc_id, task, split = instance.args
        else:
            context, gen_kwargs, visuals, doc_id, task, split = instance.args
        try:
            settings, names = GenerationSettings.parse(gen_kwargs, defaults)
        except ValueError as error:
            raise SampleError(f"{task}/{doc_id}", str(error)) from error
        unused.update(names)
        identity = (task, split, doc_id, instance.idx)
        requests.append(Request(index, task, doc_id, split, seen[identity], context, visuals, settings))
        seen[identity] += 1
    return requests, unused
