"""The runner's end of a W&B session: start the process, send commands, wait for replies with a limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from sparsemm_eval.errors import SparseMMError

MODULE = "sparsemm_eval.study.wandb_session"
_SECRETS = ("WANDB_API_KEY",)
_END = None


class SessionError(SparseMMError, RuntimeError):
    """The W&B session failed, died, or did not answer in time."""


class SessionProcess:
    """A running `wandb_session`.

    Commands are answered in order. `send` never waits, as long as few commands are under way.

    Parameters
    ----------
    folder : pathlib.Path
        W&B's folder of the study, made if missing; caches and staged files go there too.
    log : pathlib.Path
        Where the process's messages are appended.

    Raises
    ------
    OSError
        If the folder or the log cannot be written.
    """

    def __init__(self, folder: Path, log: Path):
        self._under_way = 0
        self._replies: queue.Queue[dict[str, Any] | None] = queue.Queue()
        _require_writable(folder)
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=environment(folder),
                # Ctrl-C is the runner's to handle; this process ends when its standard input does.
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether a command has no reply yet that was taken."""
        return self._under_way > 0

    def send(self, command: str, **arguments: Any) -> None:
        """Hand over a command without waiting for its reply.

        Raises
        ------
        SessionError
            If the process is gone.
        """
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise SessionError(f"the W&B process has ended ({self._ending()})") from error
        self._under_way += 1

    def reply(self, timeout: float) -> dict[str, Any] | None:
        """The next reply; None if it did not come within ``timeout`` seconds (0: do not wait).

        Raises
        ------
        SessionError
            If the command failed or the process is gone.
        """
        try:
            reply = self._replies.get(block=timeout > 0, timeout=timeout or None)
        except queue.Empty:
            return None
        if reply is _END:
            self._replies.put(_END)
            raise SessionError(f"the W&B process has ended ({self._ending()})")
        self._under_way -= 1
        if "error" in reply:
            raise SessionError(without_secrets(reply["error"]))
        return reply

    def call(self, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its reply, past the replies to earlier ones.

        Raises
        ------
        SessionError
            If a command failed, the process is gone, or ``timeout`` seconds passed.
        """
        self.send(command, **arguments)
        return self.wait(timeout, command)

    def wait(self, timeout: float, what: str) -> dict[str, Any]:
        """The reply to the last command; raises as `call` does."""
        reply: dict[str, Any] | None = {}
        while self.busy:
            reply = self.reply(timeout)
            if reply is None:
                raise SessionError(f"W&B has not answered to {what!r} within {timeout:g} s")
        return reply

    def require_alive(self) -> None:
        """Raise SessionError if the process has ended."""
        if self._process.poll() is not None:
            raise SessionError(f"the W&B process has ended ({self._ending()})")

    def end(self, timeout: float) -> None:
        """Close the process's input and wait; it is killed when it does not end in time."""
        # Unsent text of a process that is gone: what that means was reported by send.
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the process at once; what it had written stays."""
        self._process.kill()
        self.end(timeout=5)

    def _read(self, replies: TextIO) -> None:
        with replies:
            for line in replies:
                self._replies.put(json.loads(line))
        self._replies.put(_END)

    def _ending(self) -> str:
        try:
            return f"exit status {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            return "it closed its pipes"


def environment(folder: Path) -> dict[str, str]:
    """Environment of a session: W&B's own files below ``folder``, no service of another process."""
    own = {name: str(folder / name.split("_")[1].lower()) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")}
    return {**own, **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}}


def has_credentials() -> bool:
    """Whether W&B finds an API key or token in its environment or the user's netrc; nothing is asked."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        timeout=120,
        env={**os.environ, "WANDB_SILENT": "true"},
    )
    return done.returncode == 0


def without_secrets(text: str) -> str:
    """A message with every API key of the environment blanked out."""
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"[{name}]")
    return text


def _require_writable(folder: Path) -> None:
    # W&B itself would fall back to a temporary folder, where nobody looks for the run.
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    probe.unlink()
