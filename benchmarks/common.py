"""Shared by the benchmarks: measure a command, describe the machine, write the result as JSON."""

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
    """Wall-clock seconds and peak memory (bytes) of a command."""

    seconds: float
    peak_bytes: int


def measure(command: list[str], cwd: Path | None = None, quiet: bool = True) -> Measured:
    """Run a command and measure it; raises SystemExit if it fails.

    The peak is ru_maxrss of the process itself, without its child processes.
    """
    sink = subprocess.DEVNULL if quiet else None
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=sink)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)  # already waited for: Popen must not wait
    if child.returncode:
        raise SystemExit(f"{shlex.join(command)} exited with code {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(seconds, usage.ru_maxrss * unit)


def spread(values: list[float]) -> dict[str, float | int]:
    """Return n, mean, standard deviation, minimum and maximum of repeated measurements."""
    sd = stdev(values) if len(values) > 1 else 0.0
    return {"n": len(values), "mean": fmean(values), "sd": sd, "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """Return the processor, the system and the package versions."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES} | optional_versions(),
    }


def optional_versions() -> dict[str, str]:
    """Return the versions of the optional inference engines that are installed."""
    versions = {}
    for name in OPTIONAL:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json: the result, the command, the date and the machine."""
    script = Path(sys.argv[0])
    command = shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]])
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "result": result}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def cells(*values: object) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(str(value) for value in values) + " |\n"
