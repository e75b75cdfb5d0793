"""The cache of runs: one file per trial, written atomically and verified when read."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlpconv.claims.trial import ClaimRun, Measured
from mlpconv.files import json_bytes, write_atomic

__all__ = ["DamagedRun", "RunCache"]


class DamagedRun(Exception):
    """The file of a run is not what was written."""


class RunCache:
    """Results of trials in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, trial: ClaimRun) -> Path:
        """Return the file of a trial."""
        return self.folder / f"{trial.key}.json"

    def get(self, trial: ClaimRun) -> Measured | None:
        """Return the stored result, None if there is none; raise DamagedRun if the file is damaged."""
        try:
            content = self.path(trial).read_bytes()
        except FileNotFoundError:
            return None
        try:
            stored = json.loads(content)
            digest = stored.pop("sha256")
            if digest != _digest(stored) or stored["trial"] != json.loads(json_bytes(asdict(trial))):
                raise DamagedRun(str(self.path(trial)))
            predictions = np.frombuffer(zlib.decompress(base64.b64decode(stored["predictions"])), np.uint8)
            return Measured(stored["values"], predictions, stored["cpu_seconds"])
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise DamagedRun(str(self.path(trial))) from error

    def put(self, trial: ClaimRun, result: Measured) -> None:
        """Store a result; raise OSError if that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        packed = base64.b64encode(zlib.compress(result.predictions.tobytes(), 9)).decode()
        stored: dict[str, Any] = {
            "trial": asdict(trial),
            "values": result.values,
            "predictions": packed,
            "cpu_seconds": result.cpu_seconds,
        }
        write_atomic(self.path(trial), json_bytes(stored | {"sha256": _digest(stored)}))


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(stored)).hexdigest()
