"""A bounded cache of features on disk: computed once for the same images and weights, found again by their hashes.

Each entry is one safetensors file whose name is the hash of what it depends on, with a SHA-256 of its numbers inside. A
damaged entry is computed again; a cache that cannot be written is no error. The entries used longest ago go first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from mlpconv.data.storage import cache_folder
from mlpconv.errors import UsageError
from mlpconv.files import write_atomic
from mlpconv.text import option

__all__ = ["GIGABYTES", "FeatureCache", "hash_of"]

SUFFIX = ".features"
NAME = "features"
GIGABYTE = 10**9
GIGABYTES = 2.0
"""The default limit."""
MOST = 1_000_000  # gigabytes


def hash_of(parts: Iterable[str | NDArray[Any] | Tensor]) -> str:
    """Return the SHA-256 of texts and arrays, told apart from one another by kind, shape and length."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            content = part.encode()
            digest.update(f"text {len(content)} ".encode())
            digest.update(content)
        else:
            array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
            digest.update(f"array {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class FeatureCache:
    """Features (N, D) by key, in a folder of at most `gigabytes`; nothing is kept at 0."""

    def __init__(self, gigabytes: float = GIGABYTES, folder: Path | None = None) -> None:
        """Raise UsageError for a limit that is not a number of gigabytes."""
        if not 0 <= gigabytes <= MOST:  # also refuses NaN
            raise UsageError(f"{option('cache_gb', gigabytes)} is not accepted: give 0 to {MOST:,} gigabytes.")
        self.most_bytes = int(gigabytes * GIGABYTE)
        self.folder = cache_folder() / "features" if folder is None else folder

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the features of this key, from the disk where they are whole there, else computed and kept."""
        path = self.folder / f"{key}{SUFFIX}"
        features = _read(path)
        if features is None:
            features = compute()
            self._keep(path, features)
        return features

    def remembering(self) -> FeatureCache:
        """Return the same cache with its entries in memory too, for several uses of the same features in one run."""
        return _Remembering(self)

    def _keep(self, path: Path, features: Tensor) -> None:
        """Write an entry and remove the oldest beyond the limit; a full or read-only disk keeps nothing."""
        size = features.numel() * features.element_size()
        if size > self.most_bytes:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, to_bytes({NAME: features.contiguous()}, {"sha256": hash_of([features])}))
            self._trim()

    def _trim(self) -> None:
        entries = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in entries:
            total += path.stat().st_size
            if total > self.most_bytes:
                path.unlink(missing_ok=True)


class _Remembering(FeatureCache):
    """A cache of which nothing is computed or read twice."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache, self.known = cache, dict[str, Tensor]()

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self.known:
            self.known[key] = self.cache.get(key, compute)
        return self.known[key]


def _read(path: Path) -> Tensor | None:
    """The features of an entry; None where it is absent or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            features, stated = file.get_tensor(NAME), (file.metadata() or {}).get("sha256")
        os.utime(path)  # used now: the oldest goes first
    except (OSError, SafetensorError):
        return None
    return features if stated == hash_of([features]) else None
