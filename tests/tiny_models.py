"""Tiny random-weight models of every supported family, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.registry import build

TEXT_CONFIGS = {
    "llama": (LlamaConfig, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "mistral": (MistralConfig, {"num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": (Qwen2Config, {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 112}),
}
IMAGE_FAMILIES = ("tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl")
FAMILIES = (*TEXT_CONFIGS, *IMAGE_FAMILIES)
VOCABULARY, PAD = 331, 0


@dataclass(frozen=True)
class Prompt:
    """Model inputs of a batch; ``rows`` are the same prompts one by one."""

    inputs: dict[str, torch.Tensor]
    rows: tuple[dict[str, torch.Tensor], ...]


@cache
def model_of(family: str) -> PreTrainedModel:
    """A random-weight model whose greedy answers depend on the whole prompt."""
    torch.manual_seed(7)
    if family in TEXT_CONFIGS:
        kind, changes = TEXT_CONFIGS[family]
        settings = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, **changes}
        config = kind(vocab_size=VOCABULARY, max_position_embeddings=1024, pad_token_id=PAD, **settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    else:
        model, _ = build(family, seed=0)
        model.eval()
    sharpen(model)
    model.generation_config.eos_token_id = None  # answers of a random model should not end by chance
    model.generation_config.pad_token_id = PAD
    return model


def sharpen(model: PreTrainedModel) -> None:
    """Make attention peaked and logits spread, as trained weights do."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")) and "vision" not in name:
                parameter.normal_(0, 2.0 * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith(("v_proj.weight", "o_proj.weight", "lm_head.weight", "embed_tokens.weight")):
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)


def prompt_of(family: str, lengths: tuple[int, ...] = (150,)) -> Prompt:
    """Prompts of about these lengths: token ids for text models, a page and a question for image models."""
    return text_prompt(lengths) if family in TEXT_CONFIGS else image_prompt(family, len(lengths))


def text_prompt(lengths: tuple[int, ...], seed: int = 0, vocabulary: int = VOCABULARY) -> Prompt:
    """Random token ids, at most ``vocabulary`` - 1, left-padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    # no token twice: keys of equal tokens can have equal norms, and ties are broken by rounding then
    rows = [(torch.randperm(vocabulary - 1, generator=generator)[:n] + 1)[None] for n in lengths]
    width = max(lengths)
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0), value=PAD) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths]).long()
    single = tuple({"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows)
    return Prompt({"input_ids": ids, "attention_mask": mask}, single)


PAGE_SIZES = ((8, 16), (16, 16), (8, 24))


def image_prompt(family: str, count: int) -> Prompt:
    """Pages of different sizes with a question each, through the family's real processor."""
    _, processor = build(family, seed=0)
    processor.tokenizer.padding_side = "left"
    pages = [make_page("heldout", 0, i, size=PAGE_SIZES[i % len(PAGE_SIZES)]) for i in range(count)]
    questions = [f"value of {page.entries[0].key}?" + " please" * i for i, page in enumerate(pages)]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    images = [page.image for page in pages]
    batch = processor(text=texts, images=images, return_tensors="pt", padding=True)
    rows = tuple(
        dict(processor(text=[text], images=[image], return_tensors="pt"))
        for text, image in zip(texts, images, strict=True)
    )
    return Prompt(dict(batch), rows)


def generate(model: PreTrainedModel, inputs: dict, tokens: int = 12, **more) -> torch.Tensor:
    """Greedy answer [B, tokens]."""
    return answer(model, inputs, tokens, **more)[0]


def answer(
    model: PreTrainedModel, inputs: dict, tokens: int = 12, **more
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Greedy answer [B, tokens] and the logits [B, vocabulary] of every step."""
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **more,
        )
    return output.sequences[:, inputs["input_ids"].shape[1] :], output.logits
