"""What a generation really kept: entries, bytes and times, measured and not nominal."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheStats:
    """Measured facts of one cache, or of one ``generate`` call (then with times).

    Attributes
    ----------
    kept : torch.Tensor
        int64 [L, B, K]: entries kept of the prompt, observation window included.
    prompt_lengths : torch.Tensor
        int64 [B]: prompt tokens, padding excluded, before any were pruned.
    layer_lengths : torch.Tensor
        int64 [L, B]: prompt tokens that every layer was given, those that were pruned left out.
    entry_bytes : torch.Tensor
        int64 [L]: bytes of one key and one value.
    generated : int
        Tokens appended after the prompt (the last token of an answer is never fed back).
    kv_bytes_peak : int
        Most bytes of keys and values allocated at once for all rows: during prefill one layer's dense prompt
        beside what earlier layers kept.
    kv_bytes_allocated : int
        Bytes allocated for keys and values of all rows in the end: kept, generated, and slots still free.
    prefill_seconds, decode_seconds_per_step : float or None
        Wall time to the first token of all rows, and per later step of all rows. None where nothing was
        timed.
    warm_up_seconds : float
        Spent on compiling and capturing decode steps, and part of neither.
    evidence_kept : torch.Tensor or None
        int64 [L, B, K]: how many of a prompt's evidence tokens are among the entries kept. None where nobody
        said which those are.
    evidence_tokens : torch.Tensor or None
        int64 [B]: evidence tokens of the prompts.
    prefill_flops : torch.Tensor or None
        int64 [B]: estimated operations of the text model's layers. None where no session measured.
    """

    kept: torch.Tensor
    prompt_lengths: torch.Tensor
    layer_lengths: torch.Tensor
    entry_bytes: torch.Tensor
    generated: int
    kv_bytes_peak: int
    kv_bytes_allocated: int
    prefill_seconds: float | None = None
    decode_seconds_per_step: float | None = None
    warm_up_seconds: float = 0.0
    evidence_kept: torch.Tensor | None = None
    evidence_tokens: torch.Tensor | None = None
    prefill_flops: torch.Tensor | None = None

    @property
    def pruned_tokens(self) -> torch.Tensor:
        """int64 [B]: prompt tokens that do not reach the last layer."""
        return self.prompt_lengths - self.layer_lengths[-1]

    @property
    def effective_budgets(self) -> torch.Tensor:
        """float64 [B]: mean entries kept per KV head over all layers."""
        return self.kept.double().mean(dim=(0, 2))

    @property
    def effective_budget(self) -> float:
        """Mean of ``effective_budgets`` over the rows."""
        return float(self.effective_budgets.mean())

    @property
    def kv_bytes(self) -> torch.Tensor:
        """int64 [B]: bytes of the prompt entries kept."""
        return (self.kept.sum(-1) * self.entry_bytes[:, None]).sum(0)

    @property
    def kv_bytes_end(self) -> torch.Tensor:
        """int64 [B]: bytes of the entries held in the end, those of generated tokens included."""
        return self.kv_bytes + self.generated * self.kept.shape[2] * self.entry_bytes.sum()

    @property
    def kv_bytes_full(self) -> torch.Tensor:
        """int64 [B]: bytes FullKV would keep of the same prompts, had nothing been pruned."""
        return self.prompt_lengths * self.kept.shape[2] * self.entry_bytes.sum()
