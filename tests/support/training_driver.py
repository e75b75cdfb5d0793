"""A server that imports torch once and forks a trainer per request: `mlpconv.cli.main` in a process that can be killed.

A request is a JSON line on stdin: argv; kill_after (seconds, SIGKILL); signal and when (a path: sent once it exists);
file_limit (bytes, RLIMIT_FSIZE); plain (true: no figures and report). A response is a JSON line on stdout: code
(negative: a signal), output and seconds.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from forked import run_command, serve, without_report

TIMEOUT = 900.0  # seconds


def trainer(request: dict[str, Any], log: int) -> None:
    """Run the command line in the child process, and exit with its code."""

    def prepare() -> None:
        if request.get("file_limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        if request.get("plain"):
            without_report()

    run_command(request["argv"], log, prepare)


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


if __name__ == "__main__":
    serve(handle)
