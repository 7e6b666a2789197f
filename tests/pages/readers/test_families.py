import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.families import FAMILIES, build, family_named, save
from sparsemm_eval.pages.training.batches import make_batch
from sparsemm_eval.pages.training.image_inputs import image_path
from sparsemm_eval.pages.training.model import TrainingModel


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def reader(request):
    return family_named(request.param), *build(request.param)


def conversation(question):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def test_tokenizer_round_trip(reader):
    tokenizer = reader[2].tokenizer
    text = 'AB 12a4\n{"What is the value of XY?"}\nAnswer the question using a single word. ~!@#$%^&*'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer.tokenize("AB 123456")) == 9


def test_tokenizer_takes_unknown_characters(reader):
    tokenizer = reader[2].tokenizer
    ids = tokenizer("naïve 価格 €5\t", add_special_tokens=False).input_ids
    assert ids.count(tokenizer.unk_token_id) == 5
    assert len(ids) == 12


def test_special_tokens_are_single_and_distinct(reader):
    family, _, processor = reader
    ids = [processor.tokenizer.encode(token, add_special_tokens=False) for token in family.special.all]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(ids)
    assert processor.tokenizer.padding_side == "left"


def test_chat_template(reader):
    family, _, processor = reader
    text = processor.apply_chat_template(conversation("value of AB?"), add_generation_prompt=True)
    assert text == family.chat.start() + family.chat.image + "value of AB?" + family.chat.ask()
    string = [{"role": "user", "content": "it's 5 o'clock"}, {"role": "assistant", "content": "yes"}]
    closed = processor.apply_chat_template(string, add_generation_prompt=False)
    assert (
        closed
        == family.chat.start() + "it's 5 o'clock" + family.chat.ask() + "yes" + family.chat.close_assistant
    )


def test_question_lies_in_a_small_window(reader):
    tokenizer, family = reader[2].tokenizer, reader[0]
    end = tokenizer.tokenize("AB?" + family.chat.ask())
    assert len(end) <= 8


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_fast_path_equals_processor(reader, size):
    _, model, processor = reader
    pages = [make_page("train", 0, i, size) for i in range(3)]
    real = processor.image_processor([page.image for page in pages], return_tensors="pt")
    fast = image_path(model).inputs(torch.stack([torch.tensor(page.pixels) for page in pages]))
    assert set(real) == set(fast)
    for name in real:
        torch.testing.assert_close(fast[name], real[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_training_logits_equal_the_model(reader, size):
    """A training row, put together by hand, gives the logits of the model called as transformers does."""
    family, model, processor = reader
    batch = make_batch(family, processor.tokenizer, 0, 1, size, 2, variety=0.5)
    training = TrainingModel(model, processor.tokenizer)
    with torch.no_grad():
        fast = training.logits(batch, training.image_features(batch))
        fast = fast.split((batch.targets >= 0).sum(1).tolist())
        for row, page in enumerate(batch.pages):
            ids = batch.suffix[row][batch.suffix[row] != processor.tokenizer.pad_token_id]
            text = processor.tokenizer.decode(torch.cat([batch.prefix, ids]))
            opening = family.chat.image.split(family.image_token)[0]
            start = len(processor.tokenizer.decode(batch.prefix))
            assert text[:start].endswith(opening)
            text = text[:start] + family.image_token + text[start:]
            inputs = processor(
                images=[page.image], text=[text], return_tensors="pt", add_special_tokens=False
            )
            logits = model(**inputs).logits[0, -len(ids) :]
            chosen = batch.targets[row, : len(ids)] >= 0
            torch.testing.assert_close(fast[row], logits[chosen], atol=2e-4, rtol=1e-3)


def test_save_and_load(reader, tmp_path):
    _, model, processor = reader
    save(model, processor, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10e6
    for file in tmp_path.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert "_name_or_path" not in file.read_text()
    loaded, again = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    assert type(again) is type(processor)
    assert loaded.generation_config.eos_token_id == again.tokenizer.eos_token_id
    pages = [make_page("heldout", 0, i, size) for i, size in enumerate(PAGE_SIZES[::3])]
    texts = [
        again.apply_chat_template(conversation(f"value of A{i}?"), add_generation_prompt=True) for i in (1, 2)
    ]
    inputs = again(images=[page.image for page in pages], text=texts, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0, "the smaller page is padded on the left"
    output = loaded.generate(**inputs.to(torch.bfloat16), max_new_tokens=3)
    assert output.shape == (2, inputs["input_ids"].shape[1] + 3)


def test_image_features_count(reader):
    family, model, processor = reader
    for rows, columns in PAGE_SIZES:
        page = make_page("train", 0, 0, (rows, columns))
        inputs = processor(images=[page.image], text=[family.chat.image], return_tensors="pt")
        placeholders = (
            inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(family.image_token)
        ).sum()
        assert placeholders == image_path(model).count(rows, columns)


def test_unknown_family():
    with pytest.raises(KeyError, match="tiny-reader-mistral"):
        family_named("tiny")
