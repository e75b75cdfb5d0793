"""The results of the survey on disk: one JSON file with one line for each network, written whole after each."""

from __future__ import annotations

import fcntl
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from common import RESULTS, machine

from mlpconv.files import write_atomic

__all__ = ["Store"]

LIBRARIES = ("torchvision", "timm")


@dataclass
class Store:
    """What has been found so far."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path = RESULTS / "coverage.json") -> Store:
        """The results of earlier runs, if there are any."""
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {"networks": {}}
        return cls(path, content)

    def __contains__(self, name: str) -> bool:
        return name in self.content["networks"]

    def put(self, name: str, found: dict[str, Any], *, whole: bool = True) -> None:
        """Keep what was found of a network; if not `whole`, with its operations that were not looked at now.

        Another run may have written since: its results are kept.
        """
        with open(Path(tempfile.gettempdir()) / "mlpconv-coverage.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.content["networks"] = Store.read(self.path).content["networks"]
            self._put(name, found, whole=whole)

    def _put(self, name: str, found: dict[str, Any], *, whole: bool) -> None:
        before = self.content["networks"].get(name, {})
        if not whole and "operations" in before and "operations" in found:
            found = found | {"operations": before["operations"] | found["operations"]}
        self.content["networks"][name] = found
        self.write()

    def write(self) -> None:
        """Write everything, so that a reader sees the old file or the new one."""
        versions = {name: each.version for name in LIBRARIES for each in metadata.distributions(name=name)}
        about = {
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}"]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions,
        }
        self.content = about | {"networks": dict(sorted(self.content["networks"].items()))}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.content["networks"].items())
        text = "{\n" + ",\n".join(lines) + ',\n"networks": {\n' + rows + "\n}\n}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, text.encode())

    def networks(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What was found, in the order of the names."""
        return {name: self.content["networks"][name] for name in names if name in self}

    def judgements(self) -> Iterator[dict[str, Any]]:
        """Every pair's."""
        for found in self.content["networks"].values():
            yield from found.get("operations", {}).values()
