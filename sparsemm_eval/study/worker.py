"""Start of a cell's process: tie it to its runner's life, then become the command.

``python -m sparsemm_eval.study.worker PID COMMAND…``, PID being the runner's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask the kernel for SIGTERM at the runner's end, and run the command in this process."""
    runner, *line = arguments
    if sys.platform == "linux":
        # Survives exec. The command passes SIGTERM on to what it has started; SIGKILL could not be.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != int(runner):
            sys.exit("the runner ended before its cell began")
    os.execvp(line[0], line)


if __name__ == "__main__":
    main(sys.argv[1:])
