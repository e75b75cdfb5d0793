"""Work counted instead of seconds: the same on a slow machine, and beside busy neighbours."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Work", "counted", "within"]


@dataclass
class Work:
    """What happened inside a `counted` block."""

    calls: int = 0
    """Calls of Python and C functions in this thread."""
    peak: int = 0
    """Most bytes that Python held at once beyond what it held before."""


@contextmanager
def counted() -> Iterator[Work]:
    """Count the calls and the memory of a block; its result is complete when the block ends."""
    work = Work()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        work.calls += event in ("call", "c_call")

    tracemalloc.start()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield work
    finally:
        sys.setprofile(before)
        work.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def within(action: Callable[[], object], calls: int, megabytes: float = 8) -> None:
    """Assert that an action takes at most so many calls and so much memory; what it raises is raised on."""
    work = Work()
    try:
        with counted() as work:
            action()
    finally:
        assert work.calls <= calls, f"{work.calls:,} calls"
        assert work.peak <= megabytes * 2**20, f"{work.peak:,} bytes"
