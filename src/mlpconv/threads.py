"""Keep torch from hanging after `fork`: a child has none of its parent's threads, but OpenMP waits for them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread", "survive_fork"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread only, so that torch starts no thread pool; also usable as a decorator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def survive_fork() -> None:
    """Let all later children of `os.fork` use one thread, as the OpenMP pool that they inherit has no threads."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
