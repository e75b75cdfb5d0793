"""Ctrl-C and SIGTERM end a command in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mlpconv.errors import Interrupted

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at Ctrl-C and Interrupted at SIGTERM, which remove temporary files; yield the signals.

    A package that is interrupted while it is imported may raise another exception: the list says what came first.
    Handlers that others have set stay. A process of torchrun may wait for the others outside Python, where only the
    default handler of SIGTERM ends it.
    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted("terminated.", number)

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if "RANK" in os.environ:
        del defaults[signal.SIGTERM]
    alone = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    replaced = {
        number: handler for number, handler in defaults.items() if alone and signal.getsignal(number) == handler
    }
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
