"""What a study says about W&B, and whether it can work."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study import tracking_process

MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class TrackingSettings:
    """Where a study's runs go.

    Parameters
    ----------
    mode : str
        ``disabled``, ``offline`` (files below the study's folder, for `wandb sync`) or ``online``.
    project : str
    entity : str or None
        User or team; None is the account's default.
    group : str
        Name of the study.

    Raises
    ------
    ConfigError
        For another mode, or an empty project.
    """

    mode: str = "disabled"
    project: str = "sparsemm-eval"
    entity: str | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("wandb.mode", self.mode, "one of " + ", ".join(MODES))
        if not self.project:
            raise ConfigError("wandb.project", self.project, "the name of a W&B project")


def check(settings: TrackingSettings) -> None:
    """Refuse, before anything starts, what cannot work; nothing is prompted and no server is asked.

    Raises
    ------
    ConfigError
        For ``mode: online`` without credentials.
    """
    if settings.mode == "online" and not tracking_process.has_credentials():
        raise ConfigError(
            "wandb.mode",
            "online",
            "W&B credentials: run `wandb login` or set WANDB_API_KEY (never in the study's file), or use "
            "mode: offline and `wandb sync` later",
        )
