"""Where a runner's cells run: one worker for each GPU or group of GPUs, or several on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsemm_eval.errors import ConfigError


@dataclass(frozen=True)
class Workers:
    """Workers of one runner, each with what its cells see of the machine.

    Attributes
    ----------
    environments : tuple of mapping
        Additions to the environment, one per worker.
    """

    environments: tuple[Mapping[str, str], ...] = field(default=({},))

    @classmethod
    def on_gpus(cls, gpus: Sequence[str], nproc: int) -> Workers:
        """One worker for every `nproc` GPUs.

        Raises
        ------
        ConfigError
            If the GPUs cannot be split into such groups.
        """
        if len(set(gpus)) != len(gpus) or not all(gpus):
            raise ConfigError(
                "--gpus", ",".join(gpus), "different GPUs, separated by commas, for instance 0,1"
            )
        if len(gpus) % nproc:
            raise ConfigError("--gpus", ",".join(gpus), f"a multiple of --nproc ({nproc}) GPUs")
        groups = [gpus[first : first + nproc] for first in range(0, len(gpus), nproc)]
        return cls(tuple({"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups))

    @classmethod
    def on_cpu(cls, count: int) -> Workers:
        """Several workers that share the processor's cores, unless OMP_NUM_THREADS is set."""
        if count == 1 or "OMP_NUM_THREADS" in os.environ:
            return cls(({},) * count)
        return cls(({"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))},) * count)
