import os

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.drawing.layout import PAGE_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.registry import READERS, build, reader_named


@pytest.fixture(scope="module", params=sorted(READERS))
def reader(request):
    return reader_named(request.param), *build(request.param)


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
    kind, _, processor = reader
    ids = [processor.tokenizer.encode(token, add_special_tokens=False) for token in kind.special.all]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(ids)
    assert processor.tokenizer.padding_side == "left"


def test_chat_template(reader):
    kind, _, processor = reader
    text = processor.apply_chat_template(conversation("value of AB?"), add_generation_prompt=True)
    assert text == kind.chat.start() + kind.chat.image + "value of AB?" + kind.chat.ask()
    string = [{"role": "user", "content": "it's 5 o'clock"}, {"role": "assistant", "content": "yes"}]
    closed = processor.apply_chat_template(string, add_generation_prompt=False)
    assert closed == kind.chat.start() + "it's 5 o'clock" + kind.chat.ask() + "yes" + kind.chat.close_answer


def test_question_lies_in_a_small_window(reader):
    tokenizer, kind = reader[2].tokenizer, reader[0]
    end = tokenizer.tokenize("AB?" + kind.chat.ask())
    assert len(end) <= 8


def test_save_and_load(reader, tmp_path):
    _, model, processor = reader
    save(model, processor, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10e6
    for file in tmp_path.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert "name_or_path" not in file.read_text()
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


def test_an_unknown_reader():
    with pytest.raises(ConfigError, match=r"reader='tiny'.*tiny-reader-mistral"):
        reader_named("tiny")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_users_umask_decides_who_may_read_a_reader(umask, tmp_path):
    before = os.umask(umask)
    try:
        save(*build("tiny-reader"), tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
