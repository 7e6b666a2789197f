"""A reader seen by the training: image features from pixels or from text, and logits of the answers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.image_tokens import TokenGrid
from sparsemm_eval.pages.drawing.glyphs import CELL, CHARACTERS, character_codes
from sparsemm_eval.pages.readers.registry import TILE
from sparsemm_eval.pages.training.batches import Batch

_BLANK = CHARACTERS.index(" ")


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels 0..255 -> -1..1, as mean 0.5 and deviation 0.5 do."""
    return (pixels.float() / 255 - 0.5) / 0.5


def _llava_inputs(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    batch, height, width = pixels.shape
    tiles_down, tiles_across = height // TILE, width // TILE
    tiles = pixels.reshape(batch, tiles_down, TILE, tiles_across, TILE).transpose(2, 3)
    tiles = tiles.reshape(batch, tiles_down * tiles_across, TILE, TILE)
    thumbnail = resize(pixels[:, None], [TILE, TILE], interpolation=InterpolationMode.BICUBIC, antialias=True)
    values = _normalise(torch.cat([thumbnail, tiles], 1))
    return {
        "pixel_values": values[:, :, None].expand(-1, -1, 3, -1, -1),
        "image_sizes": torch.tensor([[height, width]] * batch),
    }


def _qwen2vl_inputs(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    batch, height, width = pixels.shape
    rows, columns, half = height // CELL, width // CELL, CELL // 2
    patches = _normalise(pixels).reshape(batch, rows, 2, half, columns, 2, half).permute(0, 1, 4, 2, 5, 3, 6)
    # Three equal colours and two equal frames.
    patches = patches.reshape(-1, 1, half * half).expand(-1, 6, -1).reshape(-1, 6 * half * half)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * batch)}


# The image processors spend milliseconds per image on choices that are settled for pages (size known, no
# padding, grey levels only); here a batch of equal-sized pages becomes float32 inputs at once.
IMAGE_INPUTS = {"llava_next": _llava_inputs, "qwen2_vl": _qwen2vl_inputs}


class TrainingModel:
    """Wraps an unmodified LLaVA-NeXT or Qwen2-VL reader and its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.text = model.model.language_model
        self.learning = [named for named in model.named_parameters() if named[1].requires_grad]
        ids = [
            one.ids
            for one in tokenizer.backend_tokenizer.encode_batch(list(CHARACTERS), add_special_tokens=False)
        ]
        self.characters = torch.tensor(ids)[:, 0]  # one token each

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters of "text" and "vision" that can learn; newline feature and head count as text."""
        parts: dict[str, list[tuple[str, nn.Parameter]]] = {"text": [], "vision": []}
        for name, parameter in self.learning:
            vision = any(part in name for part in ("vision_tower", "visual.", "multi_modal_projector"))
            parts["vision" if vision else "text"].append((name, parameter))
        return parts

    def page_codes(self, batch: Batch) -> torch.Tensor:
        """Indices into `CHARACTERS` of all cells; int64 [B, rows, columns]."""
        text = "".join(line for page in batch.pages for line in page.grid)
        return torch.from_numpy(character_codes(text)).view(len(batch.pages), *batch.size)

    def token_grid(self, batch: Batch) -> TokenGrid:
        """Where the features of a page's cells lie among its image features."""
        rows, columns = batch.size
        grid_thw = (1, 2 * rows, 2 * columns)  # of patches, which are half a cell wide
        config = self.model.config
        return family_of(config).image_tokens(config, columns * CELL, rows * CELL, grid_thw).grid

    def text_features(self, batch: Batch) -> torch.Tensor:
        """What perfect image features would be: the embeddings of the characters, [B, N, hidden]."""
        embedded = self.text.embed_tokens(self.characters[self.page_codes(batch)])
        if self.model.config.model_type != "llava_next":
            return embedded.flatten(1, 2)
        newline = self.model.model.image_newline.to(embedded.dtype)
        embedded = torch.cat([embedded, newline.expand(*embedded.shape[:2], 1, -1)], 2).flatten(1, 2)
        # Only whole tiles have a thumbnail; smaller pages are met as text alone.
        if batch.size[0] % (TILE // CELL) == 0:
            blank = self.text.embed_tokens(self.characters[_BLANK])
            spare = self.token_grid(batch).first
            embedded = torch.cat([blank.expand(len(embedded), spare, -1), embedded], 1)
        return embedded

    def image_features(self, batch: Batch) -> torch.Tensor:
        """Image features of the real vision tower and projector, [B, N, hidden]."""
        inputs = IMAGE_INPUTS[self.model.config.model_type](batch.pixels)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return torch.stack(
            list(self.model.model.get_image_features(**inputs, return_dict=True).pooler_output)
        )

    def logits(self, batch: Batch, features: torch.Tensor, as_line: bool = False) -> torch.Tensor:
        """Logits at the positions that have a target, [answer tokens, vocabulary], in the targets' order.

        `features` are [B * P, N, hidden], P pages for each of B rows. With `as_line` they are counted
        like text, one after the other, also where the model has rows and columns.
        """
        rows = len(batch.suffix)
        features = features.reshape(rows, -1, features.shape[-1])
        count = features.shape[1]
        prefix = self.text.embed_tokens(batch.prefix).expand(rows, -1, -1)
        suffix = self.text.embed_tokens(batch.suffix)
        embedded = torch.cat([prefix, features, suffix], 1)
        positions = None  # counted by the model itself
        if self.model.config.model_type == "qwen2_vl":
            line = torch.arange(embedded.shape[1]).expand(3, -1)
            positions = line if as_line else _positions(batch)
            positions = positions[:, None].expand(-1, rows, -1)
        # Rows are padded on the right only, so causal attention needs no mask.
        hidden = self.text(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        hidden = hidden[:, len(batch.prefix) + count :]
        return self.model.lm_head(hidden[batch.targets >= 0])

    def alignment(self, batch: Batch, features: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Distance of image features to the embeddings of the characters they show.

        Returns
        -------
        (loss, accuracy)
            Loss: cross-entropy over characters by distance, plus relative squared distance; features that
            show no cell (LLaVA's thumbnail) are drawn to the blank, weakly. Accuracy over printed cells.
        """
        codes = self.page_codes(batch).flatten(1)
        known = self.text.embed_tokens.weight[self.characters].detach().float()
        scale = known.pow(2).sum(-1).mean()
        (rows, columns), grid = batch.size, self.token_grid(batch)
        cells = grid.first + torch.arange(rows)[:, None] * grid.stride + torch.arange(columns)
        shown = features[:, cells.flatten()].float()
        distance = torch.cdist(
            shown, known.expand(len(shown), -1, -1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance = distance.pow(2) / scale
        printed = codes != _BLANK
        # Most cells are blank; without weights they would dominate.
        weight = torch.where(printed, 1.0, 0.3)
        wrong = F.cross_entropy(-4 * distance.flatten(0, 1), codes.flatten(), reduction="none")
        off = distance.gather(-1, codes[..., None]).flatten()
        loss = ((wrong + 0.5 * off) * weight.flatten()).sum() / weight.sum()
        spare = features[:, : grid.first].float()
        if spare.shape[1]:
            loss = loss + 0.1 * (spare - known[_BLANK]).pow(2).sum(-1).mean() / scale
        right = distance.argmin(-1) == codes
        return loss, right[printed].float().mean().item()


def _positions(batch: Batch) -> torch.Tensor:
    """M-RoPE positions (time, row, column) of a whole sequence, [3, N]."""
    start = len(batch.prefix)
    cells = torch.cartesian_prod(torch.arange(1), *map(torch.arange, batch.size)).T + start
    after = torch.arange(batch.suffix.shape[1]).expand(3, -1) + start + max(batch.size)
    return torch.cat([torch.arange(start).expand(3, -1), cells, after], 1)
