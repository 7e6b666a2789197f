"""Settings that every test shares."""

import os

# Equal inputs give equal bits wherever they lie in memory; read when the library loads, so before torch.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import hypothesis
import pytest
import torch

# Without a GPU, Triton kernels run in its interpreter. Read when Triton is imported, which torch does later.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from loguru import logger

from sparsemm_eval import HeadScores
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.registry import build
from tests.model_wrappers.helpers import READERS, TASK, wrapper_class
from tests.tiny_models import sharpen

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

SIZES = ((8, 16), (16, 16), (8, 24), (8, 16), (16, 24))
QUESTIONS = ("value of AB?", "read all text", "what is the value of CD here, please?", "EF?", "read all")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder by reader name of a random-weight checkpoint whose answers depend on the whole prompt."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in READERS:
        model, processor = build(name, seed=1)
        sharpen(model)
        with torch.no_grad():
            model.lm_head.weight[model.generation_config.eos_token_id] = 0  # no answer ends at once
        save(model, processor, root / name)
    return {name: str(root / name) for name in READERS}


@pytest.fixture(scope="session")
def score_files(tmp_path_factory):
    """Head-score file of random values by reader name."""
    root = tmp_path_factory.mktemp("scores")
    for name, heads in READERS.items():
        table = torch.rand(6, heads, generator=torch.Generator().manual_seed(heads))
        HeadScores.from_array(table).save(root / f"{name}.json")
    return {name: str(root / f"{name}.json") for name in READERS}


@pytest.fixture(scope="session")
def documents():
    """Documents of mixed size, the last one without an image."""
    pages = [make_page("heldout", 0, index, size=size) for index, size in enumerate(SIZES)]
    documents = [{"image": page.image, "question": text} for page, text in zip(pages, QUESTIONS, strict=True)]
    return [*documents, {"image": None, "question": "a question without image"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Journals of tests stay away from the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def build_wrapper(checkpoints, documents):
    """Build a wrapper on a random checkpoint, with the documents as its task."""

    def make(name="llava_fullkv", reader=None, simple=False, docs=None, **model_args):
        reader = reader or ("tiny-reader" if name.startswith("llava") else "tiny-reader-qwen2vl")
        defaults = {"pretrained": checkpoints[reader], "device": "cpu", "journal": "off"}
        wrapper = wrapper_class(name, simple)(**{**defaults, **model_args})
        wrapper.task_dict[TASK] = {"test": documents if docs is None else docs}
        return wrapper

    return make


@pytest.fixture
def log():
    """Messages that are logged, as a list."""
    messages = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="INFO")
    yield messages
    logger.remove(sink)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from a second thread, and test processes run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
