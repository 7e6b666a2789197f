"""Ending on SIGINT, SIGTERM and SIGHUP: the first one asks, a second one kills."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ended_by_signals(stop: threading.Event) -> Iterator[list[int]]:
    """While inside, the first of these signals sets `stop`; a second one ends this process at once."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        stop.set()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
