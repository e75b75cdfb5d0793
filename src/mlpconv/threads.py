"""Threads and `fork`: a child has none of its parent's, and a pool that waits for them waits for ever."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread", "survive_fork"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone, so that torch starts no pool of threads; also a decorator."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def survive_fork() -> None:
    """Give the children of `os.fork` one thread from now on: OpenMP's pool, which they believe to have, is gone."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)


def _alone() -> None:
    torch.set_num_threads(1)
