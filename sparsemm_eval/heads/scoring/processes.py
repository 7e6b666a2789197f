"""Sharing images among processes started by ``python -m torch.distributed.run``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes
    ----------
    rank, world_size, local_rank : int
        As the launcher says; 0, 1, 0 without one.
    wait : callable
        Returns when all processes have called it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    wait: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes the result."""
        return self.rank == 0


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the other processes of a launch, if there are any."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    import torch.distributed

    # images are shared through the journal on disk: processes only wait for each other, on any device
    # however unequal their shares take
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Processes(
            torch.distributed.get_rank(),
            world_size,
            int(os.environ.get("LOCAL_RANK", "0")),
            torch.distributed.barrier,
        )
    finally:
        torch.distributed.destroy_process_group()
