"""The parent side of a contender: start its process, request rounds, stop it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import Settings

__all__ = ["Child"]

TOP = Path(__file__).resolve().parents[1]
REST = 0.3  # seconds before a turn: spinning threads of the previous contender go to sleep


class Child:
    """A contender in its own process; `unavailable` is the reason if it cannot run here."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.unavailable: str | None = None
        self.process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Start the process and wait until it has warmed up."""
        settings = json.dumps(dataclasses.asdict(self.settings))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), *sys.path[1:]])}
        if self.settings.threads:
            environment["OMP_NUM_THREADS"] = str(self.settings.threads)
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        command = [sys.executable, "-m", "contenders", self.name, settings]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, env=environment
        )
        self.listen()

    def round(self, **request: Any) -> dict[str, Any]:
        """Run one round and return its measurements, or {"unavailable": reason} if the contender cannot run."""
        if self.unavailable or self.process is None or self.process.stdin is None:
            return {"unavailable": self.unavailable}
        time.sleep(REST)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.listen()

    def listen(self) -> dict[str, Any]:
        """Return the next answer; if the process ended without one, the reason is the last line of its stderr."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
        else:
            code = self.process.wait()
            self.stderr.seek(0)
            last = (self.stderr.read().strip().splitlines() or ["no message"])[-1]
            answer = {"unavailable": f"ended with code {code}: {last:.300}"}
        self.unavailable = answer.get("unavailable")
        return answer

    def end(self) -> None:
        """Close the pipe and wait for the process to end; kill it after 30 seconds."""
        if self.process is None:
            return
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.stderr.close()
