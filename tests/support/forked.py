"""Shared by the drivers: answer requests on stdin, and run the command line in a forked process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

import mlpconv.cli
import mlpconv.cli.train
import mlpconv.cli.training_output
import mlpconv.fitting

__all__ = ["run_command", "serve", "without_report"]


def run_command(argv: list[str], log: int, prepare: Callable[[], object]) -> NoReturn:
    """Prepare this child process, run the command line with its output in the file `log`, and exit with its code."""
    code = 99
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.fsync = lambda _: None  # only processes are killed here, not the machine
        prepare()
        code = mlpconv.cli.main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def without_report() -> None:
    """Leave out the figures and the report of runs in this process."""
    mlpconv.fitting.summarise = lambda *_: None


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer each line of JSON on stdin with one on stdout, until stdin ends.

    This process uses no tensor, so it has no threads that a fork would lose.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)
