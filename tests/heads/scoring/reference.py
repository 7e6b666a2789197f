"""Visual scores the slow way: eager attention, one token at a time, loops over everything.

Written from the paper's text, for images that are not resized and whose tokens are cells of 16 pixels.
"""

from __future__ import annotations

import torch

from sparsemm_eval.heads.scoring.answers import encode_prompts

CELL = 16


def literal_region(model, sample, box, include_base):
    """Image tokens that share an area with a box, cell by cell."""
    width, height = sample.image.size
    columns, rows = width // CELL, height // CELL
    llava = model.config.model_type == "llava_next"
    region = []
    if llava and include_base:
        for row in range(8):
            for column in range(8):
                x, y = column * width / 8, row * height / 8
                if x < box[2] and x + width / 8 > box[0] and y < box[3] and y + height / 8 > box[1]:
                    region.append(row * 8 + column)
    for row in range(rows):
        for column in range(columns):
            x, y = column * CELL, row * CELL
            if x < box[2] and x + CELL > box[0] and y < box[3] and y + CELL > box[1]:
                region.append(64 + row * (columns + 1) + column if llava else row * columns + column)
    return region


def unique_box(tokenizer, sample, token):
    """The box of the only pair whose text holds a token, else None."""
    holding = []
    for pair in sample.boxes:
        ids = tokenizer.encode(pair.text, add_special_tokens=False)
        ids += tokenizer.encode(" " + pair.text, add_special_tokens=False)
        if token in ids:
            holding.append(pair.box)
    if len(holding) != 1 or not tokenizer.decode([token]).strip():
        return None
    return holding[0]


def aligned_box(sample, index):
    """The box of the answer's character at an index; tokens are characters."""
    for pair in sample.boxes:
        if pair.start == index:
            return pair.box
    return None


def place_of_text(tokenizer, prompt, text):
    """Where a text begins in a prompt; tokens are characters."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    return next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)


@torch.no_grad()
def literal_scores(model, processor, sample, rule, forced=None):
    """One sample's scores [L, H] as nested lists, hits alike, and the answer.

    The model must run eager attention. ``forced`` holds the answer's tokens for teacher forcing.
    """
    inputs = encode_prompts(model, processor, [sample])
    prompt = inputs["input_ids"][0].tolist()
    image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    image_places = [place for place, token in enumerate(prompt) if token == image_token]
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    scores = [[0.0] * heads for _ in range(layers)]
    hits = [[0] * heads for _ in range(layers)]
    answer = []
    output = model(**inputs, use_cache=True, output_attentions=True)
    steps = rule.max_new_tokens if forced is None else len(forced)
    for step in range(steps):
        token = int(output.logits[0, -1].argmax()) if forced is None else forced[step]
        if forced is None and token in (model.generation_config.eos_token_id, image_token):
            break
        box = (
            unique_box(processor.tokenizer, sample, token)
            if rule.rule == "unique"
            else aligned_box(sample, step)
        )
        if box is not None:
            if sample.image is None:
                region = [place_of_text(processor.tokenizer, prompt, sample.shown) + box[0]]
            else:
                region = [image_places[i] for i in literal_region(model, sample, box, rule.include_base)]
            for layer in range(layers):
                for head in range(heads):
                    row = output.attentions[layer][0, head, -1].tolist()
                    order = sorted(range(len(row)), key=lambda key, row=row: -row[key])
                    for key in order[: rule.topk]:
                        if key in region:
                            scores[layer][head] += 1 / len(region)
                            hits[layer][head] += 1
        answer.append(token)
        output = model(
            input_ids=torch.tensor([[token]]),
            past_key_values=output.past_key_values,
            use_cache=True,
            output_attentions=True,
        )
    return scores, hits, answer
