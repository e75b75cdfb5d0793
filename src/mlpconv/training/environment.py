"""What a run ran on: enough to compare its speed with another's and to repeat it."""

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
    """Machine, versions and threads, as JSON values."""
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


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Name what decides the order of sums and is no longer as it was: processor, threads, GPU, torch."""
    for key in ("cpu", "gpu", "threads"):
        if then.get(key) != now[key]:
            yield f"{key} {then.get(key)}, and goes on with {now[key]}"
    versions = then.get("versions")
    torch_then = versions.get("torch") if isinstance(versions, Mapping) else None
    if torch_then != now["versions"]["torch"]:
        yield f"torch {torch_then}, and goes on with {now['versions']['torch']}"


def cpu_name() -> str:
    """The processor's name with its family and model, which tell apart what the name does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return (
        f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, model {facts.get('model')})"
    )


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
