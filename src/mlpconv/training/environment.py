"""The environment of a run: enough to compare speeds and to reproduce the result."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["cpu_name", "describe", "differences"]

PACKAGES = ("mlpconv", "torch", "numpy", "pillow", "safetensors")


def describe() -> dict[str, Any]:
    """Return machine, package versions, threads and command line as JSON values."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has changed between two environments and affects the order of summation: CPU, GPU, threads, torch."""
    for key in ("cpu", "gpu", "threads"):
        if stored.get(key) != current[key]:
            yield f"{key} {stored.get(key)}, and continues with {current[key]}"
    versions = stored.get("versions")
    stored_torch = versions.get("torch") if isinstance(versions, Mapping) else None
    if stored_torch != current["versions"]["torch"]:
        yield f"torch {stored_torch}, and continues with {current['versions']['torch']}"


def cpu_name() -> str:
    """Return the name of the processor with its family and model numbers, as names can be ambiguous."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return (
        f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, model {facts.get('model')})"
    )


def installed(name: str) -> str | None:
    """Return the installed version of a package, None if it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
