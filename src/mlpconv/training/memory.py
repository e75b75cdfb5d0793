"""Process-wide memory and floating-point settings that make training faster.

By default glibc returns every large block to the kernel and requests it again, with a page fault per page: ten million
in a short run, which cost more than the arithmetic.
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
    """Make glibc serve large blocks from its heap and keep them when freed; return False without glibc."""
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
    """Flush denormals to zero in this thread and the threads that torch starts from it; restore this thread afterwards.

    Weight decay and ReLU produce denormals, which are a hundred times as slow as normal numbers.
    """
    flushing = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
