"""Check and measure mlpconv on a GPU, phase by phase, each in a process of its own with a limit of its own.

    PYTHONPATH=src python benchmarks/gpu.py                  # every phase without a result yet, most important first
    PYTHONPATH=src python benchmarks/gpu.py correctness      # only this phase
    PYTHONPATH=src python benchmarks/gpu.py --small          # a minute on any machine, also without a GPU
    PYTHONPATH=src python benchmarks/gpu.py --page           # only docs/gpu.md, from the results

It needs torch, numpy, pillow and safetensors; CIFAR-10 is read from the parts that `gpu_data.py` made. Results go to
benchmarks/results/gpu-CARD.json after each phase and are not measured again for the same sources and card. A phase that
fails, or runs out of its time, is recorded with the reason, and the next one begins. The phases accuracy and distill go
on where earlier calls stopped: they keep their runs, each with the sources that made it, and add the seeds that are
missing. For distill alone, which trains a teacher first, pass `distill --seconds 480`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_phases.page import page

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "benchmarks" / "results"
PAGE = TOP / "docs" / "gpu.md"
PHASES = {
    "machine": 30, "correctness": 110, "engine": 40, "throughput": 90, "accuracy": 180, "memory": 40, "distill": 470,
}  # fmt: skip
"""Each phase with the most seconds that it may take."""
SMALL_SECONDS = 120


def main() -> int:
    """Run the phases; the exit code is 1 where a check of correctness failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="*", help=f"of {', '.join(PHASES)}; all by default")
    parser.add_argument("--small", action="store_true", help="the smallest size of each phase, on the CPU where needed")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--again", action="store_true", help="measure also what has a result")
    parser.add_argument("--seconds", type=int, default=360, help="stop starting phases after so many")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="measure nothing; write docs/gpu.md")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.page:
        PAGE.write_text(page(options.out), encoding="utf-8")
        return 0
    unknown = [phase for phase in options.phases if phase not in PHASES]
    if unknown:
        parser.error(f"there is no phase {unknown[0]!r}; accepted: {', '.join(PHASES)}")
    device = "cpu" if options.small and not has_gpu() else options.device
    path = options.out / f"gpu-{slug(card_name(device))}{'-small' if options.small else ''}.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for phase in options.phases or PHASES:
        left = options.seconds - (time.perf_counter() - began)
        recorded = results.get(phase, {})
        whole = not {"failed", "left_out"} & recorded.keys()
        if recorded.get("sources") == source_hash() and whole and not options.again:
            print(f"{phase}: recorded already", flush=True)
            continue
        if left < 20:
            print(f"{phase}: no time left; run the script again", flush=True)
            continue
        limit = min(SMALL_SECONDS if options.small else PHASES[phase], left)
        results[phase] = run(
            phase, device, small=options.small, seconds=limit, earlier={} if options.again else recorded
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"{phase}: {brief(results[phase])}", flush=True)
    print(f"written to {path}")
    if not options.small and options.out == RESULTS:
        PAGE.write_text(page(options.out), encoding="utf-8")
    checks = [results.get(phase, {}).get("checks", {}) for phase in ("correctness", "engine")]
    return int(any(check is not True for found in checks for check in found.values()))


def run(phase: str, device: str, *, small: bool, seconds: float, earlier: dict[str, Any]) -> dict[str, Any]:
    """Run a phase in a process of its own, which is given its earlier result; what it measured, or why it failed."""
    command = [sys.executable, "-m", "gpu_phases", phase, device, *(["--small"] if small else [])]
    paths = [str(TOP / "src"), str(TOP / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "GPU_PHASE_SECONDS": f"{seconds:.0f}",
    }
    began = time.perf_counter()
    try:
        told = json.dumps({"earlier": earlier, "sources": source_hash()})
        ended = subprocess.run(
            command, env=environment, input=told, capture_output=True, text=True, timeout=seconds, check=False
        )
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        failed = None if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no message"])[-1][:300]
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        lines, failed = [line for line in text.splitlines() if line.startswith("{")], f"took more than {seconds:.0f} s"
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    result |= {"seconds": round(time.perf_counter() - began, 1), "sources": source_hash()}
    return result | ({"failed": failed} if failed else {})


def brief(result: dict[str, Any]) -> str:
    """Return a line about a phase: its failure, or its first numbers."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    text = json.dumps({key: value for key, value in result.items() if key != "sources"})
    return text if len(text) < 300 else text[:297] + "..."


def has_gpu() -> bool:
    """Return whether torch finds a GPU, asked in a process of its own so that a broken driver ends only that one."""
    return card_name("cuda") != "none"


def card_name(device: str) -> str:
    """Return the name of the GPU; "cpu" for that device, "none" where no GPU works."""
    if device == "cpu":
        return "cpu"
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'none')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return ended.stdout.strip() or "none"


def slug(name: str) -> str:
    """Return a name in small letters and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def source_hash() -> str:
    """Return a hash of the package's and this benchmark's sources."""
    digest = hashlib.sha256()
    for path in sorted([*(TOP / "src").rglob("*.py"), *(TOP / "benchmarks").glob("gpu*/*.py"), Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
