"""Long prompts through the feed-forward layers in parts, which otherwise need more memory than attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

TOKENS = 8192  # at once; enough to keep any GPU busy


@contextmanager
def in_parts(feed_forwards: Sequence[nn.Module], tokens: int = TOKENS) -> Iterator[None]:
    """Let modules that treat every token by itself see at most so many tokens at a time inside a block.

    A 7B feed-forward layer holds three times 22 KB per token, 2.1 GB for a prompt of 32,000: more than all
    the rest of a prefill whose keys and values are cut layer by layer.
    """
    before = [vars(module).get("forward") for module in feed_forwards]
    for module in feed_forwards:
        module.forward = _parted(module.forward, tokens)
    try:
        yield
    finally:
        for module, own in zip(feed_forwards, before, strict=True):
            if own is None:
                del module.forward
            else:  # somebody had shadowed it before
                module.forward = own


def _parted(forward: Callable[[torch.Tensor], torch.Tensor], tokens: int) -> Callable[..., torch.Tensor]:
    def parted(hidden: torch.Tensor) -> torch.Tensor:
        batch, length = hidden.shape[:2]
        if batch * length <= tokens:
            return forward(hidden)
        output = torch.empty_like(hidden)
        size = max(tokens // batch, 1)
        for part, target in zip(hidden.split(size, 1), output.split(size, 1), strict=True):
            target.copy_(forward(part))
        return output

    return parted
