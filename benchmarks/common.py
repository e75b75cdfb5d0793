"""What every benchmark shares: run a command and measure it, describe the machine, write the result as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("mlpconv", "torch", "numpy", "pillow", "safetensors", "cyclopts", "matplotlib")
OPTIONAL = ("onnx", "onnxruntime", "openvino")  # of the extra `bench`


@dataclass(frozen=True)
class Measured:
    """One finished command: wall seconds, and the most memory (bytes) that it held at once."""

    seconds: float
    peak_bytes: int


def measure(command: list[str], cwd: Path | None = None, quiet: bool = True) -> Measured:
    """Run a command to its end; raises SystemExit with what it said where it fails.

    The peak is the kernel's own count for the process itself (ru_maxrss), not for processes that it started.
    """
    sink = subprocess.DEVNULL if quiet else None
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=sink)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for: Popen need not
    if child.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with code {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(seconds, usage.ru_maxrss * unit)


def spread(values: list[float]) -> dict[str, float | int]:
    """n, mean, standard deviation and the extremes of repeated measurements."""
    sd = stdev(values) if len(values) > 1 else 0.0
    return {"n": len(values), "mean": fmean(values), "sd": sd, "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """The processor, the system and the versions that a number depends on."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES} | optional_versions(),
    }


def optional_versions() -> dict[str, str]:
    """The versions of the engines to compare with, where they are installed."""
    found = {}
    for name in OPTIONAL:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json: the result, the command that made it, and the machine."""
    script = Path(sys.argv[0])
    command = shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]])
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "result": result}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
