"""Keep freed memory in the process: the page faults of giving it back each step cost more than the arithmetic.

glibc hands every large block back to the kernel and takes it again, a fault a page: ten million in a short run.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["flushing_denormals", "keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to serve large blocks from its own heap and keep them; False where there is no glibc to ask."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return sum(int(mallopt(parameter, value)) for parameter, value in settings) == len(settings)


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Round denormals to zero in this thread and those that torch starts from it, and put the thread back afterwards.

    Weight decay and ReLU make denormals, which cost a hundred times a normal number.
    """
    flushed_before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)
