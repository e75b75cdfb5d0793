"""The parent's end of a contender's pipes: start it, request rounds, end it."""

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
REST = 0.3  # seconds before a turn: threads of the one before that still spin go to sleep


class Child:
    """A contender in its own process; `unavailable` is the reason if it cannot run."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.unavailable: str | None = None
        self.process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Start the process and wait until it has warmed up."""
        given = json.dumps(dataclasses.asdict(self.settings))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), *sys.path[1:]])}
        if self.settings.threads:
            environment["OMP_NUM_THREADS"] = str(self.settings.threads)
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the child)
        command = [sys.executable, "-m", "contenders", self.name, given]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, env=environment
        )
        self.listen()

    def round(self, **asked: Any) -> dict[str, Any]:
        """Run one round with the given options; return its result or {"unavailable": reason}."""
        if self.unavailable or self.process is None or self.process.stdin is None:
            return {"unavailable": self.unavailable}
        time.sleep(REST)
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self.listen()

    def listen(self) -> dict[str, Any]:
        """Return the next answer; for a process that has ended, its last line on stderr is the reason."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
        else:
            code = self.process.wait()
            self.complaints.seek(0)
            last = (self.complaints.read().strip().splitlines() or ["without a word"])[-1]
            answer = {"unavailable": f"ended with code {code}: {last:.300}"}
        self.unavailable = answer.get("unavailable")
        return answer

    def end(self) -> None:
        """Close the pipe and wait for the process to end."""
        if self.process is None:
            return
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.complaints.close()
