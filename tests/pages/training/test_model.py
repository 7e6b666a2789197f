from dataclasses import replace

import pytest
import torch

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.recipe import FOUNDATION
from sparsemm_eval.pages.readers.registry import READERS, build, reader_named
from sparsemm_eval.pages.training.batches import IGNORE, make_batch
from sparsemm_eval.pages.training.model import IMAGE_INPUTS, TrainingModel

PLAIN = FOUNDATION[0]


@pytest.fixture(scope="module", params=sorted(READERS))
def reader(request):
    return reader_named(request.param), *build(request.param)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_fast_path_equals_processor(reader, size):
    _, model, processor = reader
    pages = [make_page("train", 0, i, size) for i in range(3)]
    real = processor.image_processor([page.image for page in pages], return_tensors="pt")
    fast = IMAGE_INPUTS[model.config.model_type](torch.stack([torch.tensor(page.pixels) for page in pages]))
    assert set(real) == set(fast)
    for name in real:
        torch.testing.assert_close(fast[name], real[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_training_logits_equal_the_model(reader, size):
    """A training row, put together by hand, gives the logits of the model called as transformers does."""
    kind, model, processor = reader
    batch = make_batch(kind, processor.tokenizer, replace(PLAIN, variety=0.5), 0, 1, size, 2)
    training = TrainingModel(model, processor.tokenizer)
    with torch.no_grad():
        fast = training.logits(batch, training.image_features(batch))
        fast = fast.split((batch.targets >= 0).sum(1).tolist())
        for row, page in enumerate(batch.pages):
            ids = batch.suffix[row][batch.suffix[row] != processor.tokenizer.pad_token_id]
            text = processor.tokenizer.decode(torch.cat([batch.prefix, ids]))
            opening = kind.chat.image.split(kind.image_token)[0]
            start = len(processor.tokenizer.decode(batch.prefix))
            assert text[:start].endswith(opening)
            text = text[:start] + kind.image_token + text[start:]
            inputs = processor(
                images=[page.image], text=[text], return_tensors="pt", add_special_tokens=False
            )
            logits = model(**inputs).logits[0, -len(ids) :]
            chosen = batch.targets[row, : len(ids)] >= 0
            torch.testing.assert_close(fast[row], logits[chosen], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_cells_lie_where_their_features_are(reader, size):
    """As many features as the processor makes place for, and each cell's is at the cell's place."""
    kind, model, processor = reader
    batch = make_batch(kind, processor.tokenizer, PLAIN, 0, 0, size, 2)
    learner = TrainingModel(model, processor.tokenizer)
    inputs = processor(images=[batch.pages[0].image], text=[kind.chat.image], return_tensors="pt")
    image_token = processor.tokenizer.convert_tokens_to_ids(kind.image_token)
    grid = learner.token_grid(batch)
    assert (grid.rows, grid.columns) == size
    assert (inputs["input_ids"] == image_token).sum() == grid.first + grid.rows * grid.stride
    with torch.no_grad():
        features = learner.text_features(batch)
        assert features.shape[1] == grid.first + grid.rows * grid.stride
        assert learner.alignment(batch, features)[1] == 1
        assert learner.alignment(batch, features.roll(1, dims=1))[1] < 1


def test_pages_as_lines_are_counted_like_text():
    model, processor = build("tiny-reader-qwen2vl")
    learner = TrainingModel(model, processor.tokenizer)
    batch = make_batch(READERS["tiny-reader-qwen2vl"], processor.tokenizer, PLAIN, 0, 3, (8, 16), 2)
    features = learner.text_features(batch)
    whole = torch.cat(
        [model.get_input_embeddings()(ids) for ids in (batch.prefix.expand(2, -1), batch.suffix)], 1
    )
    count = len(batch.prefix)
    embedded = torch.cat([whole[:, :count], features, whole[:, count:]], 1)
    hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
    expected = model.lm_head(hidden[:, count + features.shape[1] :][batch.targets != IGNORE])
    torch.testing.assert_close(learner.logits(batch, features, as_line=True), expected)
    assert not torch.allclose(learner.logits(batch, features), expected)
