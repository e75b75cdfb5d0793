"""Store the results of the survey: one JSON file with one line per network, rewritten after each network."""

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
    """Results so far."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path = RESULTS / "coverage.json") -> Store:
        """Read the results of earlier runs, if any."""
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {"networks": {}}
        return cls(path, content)

    def __contains__(self, name: str) -> bool:
        return name in self.content["networks"]

    def put(self, name: str, result: dict[str, Any], *, whole: bool = True) -> None:
        """Store the result of a network; unless `whole`, keep the operations that were not run this time.

        Results that another process wrote in the meantime are kept.
        """
        with open(Path(tempfile.gettempdir()) / "mlpconv-coverage.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.content["networks"] = Store.read(self.path).content["networks"]
            self._put(name, result, whole=whole)

    def _put(self, name: str, result: dict[str, Any], *, whole: bool) -> None:
        before = self.content["networks"].get(name, {})
        if not whole and "operations" in before and "operations" in result:
            result = result | {"operations": before["operations"] | result["operations"]}
        self.content["networks"][name] = result
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        versions = {name: package.version for name in LIBRARIES for package in metadata.distributions(name=name)}
        about: dict[str, Any] = {
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
        """Return the results in the order of the names."""
        return {name: self.content["networks"][name] for name in names if name in self}

    def judgements(self) -> Iterator[dict[str, Any]]:
        """Yield the judgement of every network and operation."""
        for result in self.content["networks"].values():
            yield from result.get("operations", {}).values()
