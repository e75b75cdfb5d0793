"""Run one phase: `python -m gpu_phases PHASE DEVICE [--small]`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

import torch


def say(result: dict[str, Any]) -> None:
    """Print what is known so far; the last line counts, also where the process is ended."""
    print(json.dumps(result), flush=True)


def main() -> None:
    """Import the phase and run it."""
    phase, device, *rest = sys.argv[1:]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here")
    deadline = time.perf_counter() + float(os.environ.get("GPU_PHASE_SECONDS", "600")) - 5
    module = importlib.import_module(f"gpu_phases.{phase}")
    told = json.loads(sys.stdin.read() or "{}")
    extra = told if phase in ("accuracy", "distill") else {}
    say(module.run(torch.device(device), small="--small" in rest, deadline=deadline, say=say, **extra))


if __name__ == "__main__":
    main()
