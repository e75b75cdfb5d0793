"""Decode image files in several threads: Pillow lets other threads run while it decodes."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlpconv.cores import CORES

__all__ = ["MAX_THREADS", "in_threads", "without_warnings"]

MAX_THREADS = 4  # each may hold a decoded image of the largest accepted size
SMALL_BYTES = 8 << 10  # smaller files are decoded faster than a thread takes them

Source = TypeVar("Source", bound="bytes | str | os.PathLike[str]")
Result = TypeVar("Result")


def in_threads(function: Callable[[Source], Result], files: Sequence[Source], threads: int = CORES) -> list[Result]:
    """Return the results of a function that decodes image files, or their bytes, in order.

    At most MAX_THREADS are used, and none for one file or for files that are small on average.
    """
    threads = min(threads, MAX_THREADS)
    with without_warnings():
        if threads < 2 or len(files) < 2 or sum(map(_bytes, files)) < SMALL_BYTES * len(files):
            return list(map(function, files))
        return list(_pool(threads).map(function, files))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide Pillow's warnings about odd metadata; only the main thread changes the global warning filters."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _bytes(file: bytes | str | os.PathLike[str]) -> int:
    if isinstance(file, bytes):
        return len(file)
    try:
        return Path(file).stat().st_size
    except (OSError, ValueError):  # decoding raises the error that names the file
        return 0
