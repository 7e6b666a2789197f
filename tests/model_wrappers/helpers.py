"""Requests as lmms-eval makes them, and the wrapper classes by name."""

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

READERS = {"tiny-reader": 8, "tiny-reader-mistral": 8, "tiny-reader-qwen2vl": 7}  # query heads of 6 layers
TASK = "pages"


def to_visual(document):
    """Images of a document, as tasks give them."""
    return [] if document["image"] is None else [document["image"]]


def to_messages(document):
    """Messages of a document, as lmms-eval builds them in the chat protocol."""
    content = [{"type": "image", "url": image} for image in to_visual(document)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]


def make_requests(documents, chat, gen_kwargs=None, repeats=1, task=TASK):
    """Requests of one task in either protocol."""
    requests = []
    for doc_id, document in enumerate(documents):
        kwargs = dict({"max_new_tokens": 5} if gen_kwargs is None else gen_kwargs)
        text = document["question"]
        arguments = (text, to_messages, kwargs) if chat else (text, kwargs, to_visual)
        request = Instance(
            request_type="generate_until",
            arguments=(*arguments, doc_id, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": doc_id, "repeats": repeats},
        )
        requests.extend([request] * repeats)
    return requests


def wrapper_class(name, simple=False):
    """Class of a model name, as lmms-eval finds it."""
    return get_model(name, simple)


def answers_of(wrapper, documents, **kwargs):
    """Texts of the answers to all documents."""
    requests = make_requests(documents, chat=not wrapper.is_simple, **kwargs)
    return [result.text for result in wrapper.generate_until(requests)]
