"""A reader seen by the training: image features from pixels or from text, and logits of the answers."""

import torch
from torch.nn import functional as F

from sparsemm_eval.pages.drawing.glyphs import CELL, CHARACTERS
from sparsemm_eval.pages.readers.family import TILE
from sparsemm_eval.pages.training.image_inputs import image_path


class TrainingModel:
    """Wraps an unmodified reader.

    Parameters
    ----------
    model : LlavaNextForConditionalGeneration or Qwen2VLForConditionalGeneration
    tokenizer : PreTrainedTokenizerFast
    """

    def __init__(self, model, tokenizer):
        self.model = model
        self.path = image_path(model)
        self.text = model.model.language_model
        self.characters = torch.tensor(tokenizer.convert_tokens_to_ids(list(CHARACTERS)))
        # Look-up from unicode to the index in CHARACTERS, for whole grids at once.
        self._codes = torch.full((128,), -1)
        self._codes[torch.tensor([ord(c) for c in CHARACTERS])] = torch.arange(len(CHARACTERS))

    def parts(self):
        """Parameters as {"text": [...], "vision": [...]}; the newline feature and the head count as text."""
        parts = {"text": [], "vision": []}
        for name, parameter in self.model.named_parameters():
            vision = any(part in name for part in ("vision_tower", "visual.", "multi_modal_projector"))
            parts["vision" if vision else "text"].append((name, parameter))
        return parts

    def page_codes(self, batch):
        """Indices into `CHARACTERS` of all cells; int64 [B, rows, columns]."""
        grids = torch.tensor([[list(line.encode()) for line in page.grid] for page in batch.pages])
        return self._codes[grids]

    def text_features(self, batch):
        """What perfect image features would be: the embeddings of the characters, [B, N, hidden]."""
        embedded = self.text.embed_tokens(self.characters[self.page_codes(batch)])
        if self.model.config.model_type == "llava_next":
            newline = self.model.model.image_newline.to(embedded.dtype)
            embedded = torch.cat([embedded, newline.expand(*embedded.shape[:2], 1, -1)], 2).flatten(1, 2)
            # Only whole tiles have a thumbnail; smaller pages are met as text alone.
            if batch.pages[0].rows % (TILE // CELL) == 0:
                blank = self.text.embed_tokens(self.characters[CHARACTERS.index(" ")])
                spare = self.path.cells(batch.pages[0].rows, batch.pages[0].columns)[0, 0]
                embedded = torch.cat([blank.expand(len(embedded), spare, -1), embedded], 1)
            return embedded
        return embedded.flatten(1, 2)

    def image_features(self, batch):
        """Image features of the real vision tower and projector, [B, N, hidden]."""
        inputs = self.path.inputs(batch.pixels)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return torch.stack(
            list(self.model.model.get_image_features(**inputs, return_dict=True).pooler_output)
        )

    def logits(self, batch, features, as_line=False):
        """Logits at the positions that have a target.

        Parameters
        ----------
        batch : Batch
        features : tensor, [B, N, hidden]
        as_line : bool
            Count image features like text, one after the other, also where the model has rows and columns.

        Returns
        -------
        tensor, [answer tokens, vocabulary]
            In the order of `batch.targets[batch.targets != IGNORE]`.
        """
        rows, count = features.shape[:2]
        prefix = self.text.embed_tokens(batch.prefix).expand(rows, -1, -1)
        suffix = self.text.embed_tokens(batch.suffix)
        embedded = torch.cat([prefix, features, suffix], 1)
        positions = self.path.positions(
            len(batch.prefix), batch.pages[0].rows, batch.pages[0].columns, batch.suffix.shape[1]
        )
        if positions is not None:
            positions = torch.arange(embedded.shape[1]).expand(3, -1) if as_line else positions
            positions = positions[:, None].expand(-1, rows, -1)
        # Rows are padded on the right only, so causal attention needs no mask.
        hidden = self.text(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        hidden = hidden[:, len(batch.prefix) + count :]
        return self.model.lm_head(hidden[batch.targets >= 0])

    def alignment(self, batch, features):
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
        cells = self.path.cells(batch.pages[0].rows, batch.pages[0].columns).flatten()
        shown = features[:, cells].float()
        distance = torch.cdist(
            shown, known.expand(len(shown), -1, -1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance = distance.pow(2) / scale
        printed = codes != CHARACTERS.index(" ")
        # Most cells are blank; without weights they would dominate.
        weight = torch.where(printed, 1.0, 0.3)
        wrong = F.cross_entropy(-4 * distance.flatten(0, 1), codes.flatten(), reduction="none")
        off = distance.gather(-1, codes[..., None]).flatten()
        loss = ((wrong + 0.5 * off) * weight.flatten()).sum() / weight.sum()
        spare = features[:, : int(cells[0])].float()
        if spare.shape[1]:
            loss = loss + 0.1 * (spare - known[CHARACTERS.index(" ")]).pow(2).sum(-1).mean() / scale
        right = distance.argmin(-1) == codes
        return loss, right[printed].float().mean().item()
