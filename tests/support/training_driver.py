"""Imports torch once, then forks a real trainer for each order: `mlpconv.cli.main` in a process that can be killed.

One order a line on stdin, as JSON: argv; kill_after (seconds, SIGKILL); signal and when (a path: sent once it exists);
file_limit (bytes, RLIMIT_FSIZE); plain (true: without the pictures and the report). One answer a line on stdout: code
(negative: a signal), output, seconds, and lag (seconds from the signal to the end).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mlpconv.cli
import mlpconv.cli.train
import mlpconv.cli.training_output
import mlpconv.fitting

LONGEST = 300.0  # seconds a trainer may take


def trainer(order: dict[str, Any], log: int) -> None:
    """The child: train as the command line does, and end with its exit code."""
    code = 99
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.fsync = lambda _: None  # a process is killed here, not a machine: what was written stays written
        if order.get("file_limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
        if order.get("plain"):
            mlpconv.fitting.summarise = lambda *_: None
        code = mlpconv.cli.main(order["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a trainer, kill or signal it as ordered, and tell how it ended."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            trainer(order, log.fileno())
        sent, number = None, signal.SIGKILL if "kill_after" in order else order.get("signal")
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
            if pid:
                break
            due = now - start > order["kill_after"] if "kill_after" in order else Path(order.get("when", "/-")).exists()
            if number and sent is None and due:
                os.kill(child, number)
                sent = now
            if now - start > LONGEST:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"code": "it hung", "output": "", "seconds": now - start, "lag": None}
            time.sleep(0.002)
        log.seek(0)
        lag = None if sent is None else now - sent
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "output": log.read().decode(), "seconds": now - start, "lag": lag}


def main() -> None:
    """Serve orders until stdin ends; no tensor is ever touched here, so no thread exists that a fork would lose."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
