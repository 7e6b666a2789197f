"""Commands tied to the life of the process that starts them: even after kill -9 none is left behind.

``python -m sparsemm_eval.lmms.tied PID COMMAND…`` becomes the command, PID being the starter's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(line: Sequence[str]) -> list[str]:
    """A command line that runs `line`, and gets SIGTERM when this process ends (on Linux)."""
    return [sys.executable, "-m", "sparsemm_eval.lmms.tied", str(os.getpid()), *line]


def main(arguments: list[str]) -> None:
    """Ask the kernel for SIGTERM at the starter's end, and run the command in this process."""
    starter, *line = arguments
    if sys.platform == "linux":
        # Survives exec. The command passes SIGTERM on to what it has started; SIGKILL could not be.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != int(starter):
            sys.exit("the process that started this command has ended before it began")
    os.execvp(line[0], line)


if __name__ == "__main__":
    main(sys.argv[1:])
