"""Pruning of image tokens in a transformers model: hooks on its decoder layers, from one layer on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.cache.pruned_prompt import PrunedPrompt
from sparsemm_eval.cache.ragged_cache import RaggedCache
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.decode.settings import attention_mask_of, refuse_several
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.model.encoded_images import with_encoded_images
from sparsemm_eval.model.families.registry import families
from sparsemm_eval.model.text_decoder import TextDecoder
from sparsemm_eval.pruning.registry import SETTING


class ImagePruning:
    """What a session does for a config's pruner; see ``docs/pruning.md``.

    Raises
    ------
    ConfigError, UnsupportedError
        If the pruner cannot work in this model.
    """

    def __init__(self, model: PreTrainedModel, decoder: TextDecoder, config: CompressionConfig):
        self.model, self.pruner, self.share = model, config.pruner, config.image_share
        self.given = f"{SETTING}={self.pruner.name}"
        self.image_token = getattr(model.config, "image_token_id", None)
        if self.image_token is None:
            raise UnsupportedError(f"{self.given}: {type(model).__name__} reads no images, leave it out")
        # where positions follow an image's grid, what is left out leaves gaps
        self.has_grid = hasattr(model.base_model, "get_rope_index")
        self.first = 0 if self.pruner.rank is None else config.prune_layer
        self.last = decoder.num_layers - 1
        if self.first > self.last:
            remedy = f"an integer in [1, {self.last}]: the model has {self.last + 1} layers"
            raise ConfigError("prune_layer", self.first, remedy)
        self.thumbnail = self._thumbnail() if self.pruner.resizes else None
        own = {id(getattr(module, "self_attn", None)): module for module in model.modules()}
        self.layers = [own.get(id(attention)) for attention in decoder.attentions]
        if None in self.layers:
            raise UnsupportedError(
                f"{self.given}: the decoder layers of {type(model).__name__} are not known"
            )
        self._planned: PrunedPrompt | None = None

    def _thumbnail(self) -> int:
        """Tokens of an image's thumbnail, which come first."""
        for family in families().values():
            if self.model.config.model_type in family.model_types and family.thumbnail is not None:
                return family.thumbnail(self.model.config)
        raise UnsupportedError(
            f"{self.given}: {type(self.model).__name__} has no thumbnails to keep, its images must be made "
            "smaller before they are encoded. Our models of lmms-eval do so; here, leave it out and give the "
            "processor smaller max_pixels, or images that its family's shrink_image has made smaller"
        )

    def hooks(self) -> list[Any]:
        """Put the hooks on; the caller removes them."""
        pruned = self.layers[self.first :]
        return [layer.register_forward_pre_hook(self._before_layer, with_kwargs=True) for layer in pruned]

    def before_generate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a ``generate`` call, whose prompt is planned now, while the arguments are plain."""
        settings = arguments.get("generation_config") or self.model.generation_config
        refuse_several(self.given, settings, arguments)
        ids = arguments.get("input_ids", arguments.get("inputs"))
        mask = {} if ids is None else {"attention_mask": attention_mask_of(settings, arguments)}
        self._planned = plan = self._plan(ids, {**arguments, **mask})
        if plan is None or not plan.closes_up:
            return arguments
        # positions are counted over it, and continue from there
        return {**arguments, "attention_mask": plan.kept.long()}

    def before_forward(self, cache: RaggedCache, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a forward pass that begins a prompt, or goes on behind it."""
        if not cache.is_prefilled:
            self._check(arguments)
            plan, self._planned = self._planned, None
            if plan is None:
                arguments = with_encoded_images(self.model, arguments) if self.first == 0 else arguments
                plan = self._plan(arguments.get("input_ids"), arguments)
            cache.shared.pruned = plan
        plan = cache.shared.pruned
        if plan is None or not plan.closes_up or arguments.get("position_ids") is not None:
            return arguments
        if cache.is_prefilled:
            positions = plan.kept.sum(-1, keepdim=True) + cache.layers[0].generated
        else:
            positions = (plan.kept.long().cumsum(-1) - 1).clamp(min=0)
        return {**arguments, "position_ids": positions}

    def forget(self) -> None:
        """Nothing of a call that failed is left for the next one."""
        self._planned = None

    def _check(self, arguments: dict[str, Any]) -> None:
        config = self.model.config.get_text_config()
        hidden = arguments.get("output_hidden_states", config.output_hidden_states)
        for name, given in (
            ("output_hidden_states", hidden),
            ("labels", arguments.get("labels") is not None),
        ):
            if given:
                raise UnsupportedError(
                    f"{name}: with {self.given} layers hold different tokens, leave it out"
                )

    def _plan(self, ids: torch.Tensor | None, arguments: dict[str, Any]) -> PrunedPrompt | None:
        """What becomes of a prompt; None where it has no image."""
        if ids is None:
            raise UnsupportedError(f"input_ids=None: {self.given} asks which tokens are image tokens")
        mask, images = arguments.get("attention_mask"), ids == self.image_token
        given = arguments.get("pixel_values") is not None or arguments.get("mm_encoder_outputs")
        if not given or not bool(images.any()):
            return None
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedError(f"attention_mask: {self.given} takes [rows, tokens] only")
        everything = torch.ones_like(images) if mask is None else mask.bool()
        closes_up = self.first == 0 and not self.has_grid
        plan = PrunedPrompt(self.pruner, self.share, self.first, everything, images, closes_up)
        if self.first == 0:
            encoded = (arguments.get("mm_encoder_outputs") or {}).get("image")
            if encoded is None:
                raise UnsupportedError(
                    f"{self.given} needs image features: give pixel_values without videos, to a model that "
                    "takes mm_encoder_outputs"
                )
            plan.keep(self._picked(plan, encoded.pooler_output))
        return plan

    @torch.no_grad()
    def _picked(self, plan: PrunedPrompt, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """bool [B, N]: image tokens that stay, of features [tokens, hidden] of every image in order."""
        picked = torch.zeros_like(plan.images)
        if self.thumbnail is not None:
            place = torch.cat([torch.arange(len(one), device=picked.device) for one in features])
            picked[plan.images] = place < (self.thumbnail if self.share < 1 else len(place))
            return picked
        rows = torch.cat(list(features)).split(plan.images.sum(-1).tolist())
        for row, (own, count) in enumerate(zip(rows, plan.kept_counts.tolist(), strict=True)):
            if count:
                where = plan.images[row].nonzero().flatten()
                picked[row, where[self.pruner.pick(own, count).to(where.device)]] = True
        return picked

    def _before_layer(
        self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Hook: layers behind the pruning get what is left; hidden states are cut once, in the first."""
        if torch.compiler.is_compiling():  # only decode steps are, of layers that need no mask
            return None
        cache, index = kwargs.get("past_key_values"), layer.self_attn.layer_idx
        plan = cache.shared.pruned if isinstance(cache, RaggedCache) else None
        if plan is None:
            return None
        held = cache.layers[index]
        if held.is_prefilled:
            if held.is_dense:  # the model's mask has the whole prompt's width
                kwargs["attention_mask"] = plan.decode_mask(held.store.length + 1)
            return args, kwargs
        hidden, *others = args
        if index == plan.layer:
            hidden = plan.rows(hidden)
            positions = kwargs.get("position_ids")
            plan.inputs = {
                "attention_mask": plan.prefill_mask(),
                "position_embeddings": tuple(plan.rows(part) for part in kwargs["position_embeddings"]),
                "position_ids": None if positions is None else plan.rows(positions),
            }
        kwargs = {**kwargs, **plan.inputs}  # of the whole prompt, each time
        if index == self.last:
            plan.inputs = {}
        return (hidden, *others), kwargs
