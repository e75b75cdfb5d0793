"""A server that imports torch once and forks the processes of a run: `mlpconv.cli.main` under torchrun's variables.

A request is a JSON line on stdin: `argv` (a list of words for each rank); `signal`, `rank` and `when` (a path: the
signal is sent to the rank once it exists). A response is a JSON line on stdout: the `codes` and `outputs` by rank, and
`late`, the seconds between the signal and the end of the last process.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from forked import run_command, serve, without_report

from mlpconv.training import process_group

TIMEOUT = 120.0  # seconds
PORTS = iter(range(20_000 + os.getpid() % 20_000, 60_000))


def start(rank: int, size: int, port: int, argv: list[str], log: int) -> int:
    """Fork one process; return its id."""

    def prepare() -> None:
        without_report()
        process_group.JOIN_SECONDS = 20.0
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()}

    child = os.fork()
    if child == 0:
        run_command(argv, log, prepare)
    return child


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Start all processes, send the signal, and wait."""
    argv, port = request["argv"], next(PORTS)
    logs = [os.memfd_create(f"rank-{rank}") for rank in range(len(argv))]
    children = [start(rank, len(argv), port, words, logs[rank]) for rank, words in enumerate(argv)]
    codes: dict[int, Any] = {}
    begun, sent = time.monotonic(), 0.0
    while len(codes) < len(children) and time.monotonic() - begun < TIMEOUT:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        if not sent and "signal" in request and Path(request["when"]).exists():
            os.kill(children[request["rank"]], request["signal"])
            sent = time.monotonic()
        others = [child for rank, child in enumerate(children) if rank != request.get("rank")]
        if sent and request["signal"] == signal.SIGSTOP and all(child in codes for child in others):
            break  # the stopped process may be left
        time.sleep(0.005)
    late = time.monotonic() - sent if sent else 0.0
    for child in children:
        if child not in codes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    outputs = []
    for log in logs:
        with os.fdopen(log, "rb") as file:
            file.seek(0)
            outputs.append(file.read().decode())
    return {"codes": [codes.get(child, "left") for child in children], "outputs": outputs, "late": late}


if __name__ == "__main__":
    serve(handle)
