"""A server that imports torch once and forks a trainer per request: `mlpconv.cli.main` in a process that can be killed.

A request is a JSON line on stdin: argv; kill_after (seconds, SIGKILL); signal and when (a path: sent once it exists);
file_limit (bytes, RLIMIT_FSIZE); plain (true: no figures and report). A response is a JSON line on stdout: code
(negative: a signal), output and seconds.
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

TIMEOUT = 900.0  # seconds


def trainer(request: dict[str, Any], log: int) -> None:
    """Run the command line in the child process, and exit with its code."""
    code = 99
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.fsync = lambda _: None  # only processes are killed here, not the machine
        if request.get("file_limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        if request.get("plain"):
            mlpconv.fitting.summarise = lambda *_: None
        code = mlpconv.cli.main(request["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a trainer, kill or signal it as requested, and return how it ended."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            trainer(request, log.fileno())
        sent, number = False, signal.SIGKILL if "kill_after" in request else request.get("signal")
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
            if pid:
                break
            due = (
                now - start > request["kill_after"]
                if "kill_after" in request
                else Path(request.get("when", "/-")).exists()
            )
            if number and not sent and due:
                os.kill(child, number)
                sent = True
            if now - start > TIMEOUT:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"code": "timeout", "output": "", "seconds": now - start}
            time.sleep(0.002)
        log.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "output": log.read().decode(), "seconds": now - start}


def main() -> None:
    """Serve requests until stdin ends. This process uses no tensor, so has no threads that a fork would lose."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
