"""How long the other processes of a run live after one is killed or stopped: `python benchmarks/faults.py --rounds 3`.

Starts torchrun with two processes on the digits, sends SIGKILL or SIGSTOP to one of them after the first checkpoint,
and measures until the other process, and until torchrun, have ended. Writes results/faults.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import spread, write_result

TRAIN = ["-m", "mlpconv", "train", "digits", "--epochs", "5000", "--set", "precision=fp32", "checkpoint_minutes=0"]
LIMIT = 120.0  # seconds


def children(parent: int) -> dict[int, int]:
    """Return the process ids of a launcher's processes, by rank."""
    ranks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                variables = (entry / "environ").read_bytes().split(b"\0")
                ranks |= {int(v[5:]): int(entry.name) for v in variables if v.startswith(b"RANK=")}
        except (OSError, IndexError, ValueError):
            continue
    return ranks


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def measure(number: signal.Signals, folder: Path) -> dict[str, float]:
    """Return the seconds from the signal to the end of the other process, and to the end of torchrun."""
    launcher = Path(sys.executable).with_name("torchrun")
    command = [str(launcher), "--standalone", "--nproc-per-node", "2", *TRAIN, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as torchrun:
        while not (folder / "checkpoints").is_dir():
            if torchrun.poll() is not None:
                raise SystemExit("the run ended before its first checkpoint")
            time.sleep(0.05)
        ranks = children(torchrun.pid)
        os.kill(ranks[1], number)
        start = time.perf_counter()
        while alive(ranks[0]) and time.perf_counter() - start < LIMIT:
            time.sleep(0.02)
        other = time.perf_counter() - start
        torchrun.wait(LIMIT)
        return {"other_s": other, "torchrun_s": time.perf_counter() - start}


def main() -> int:
    """Measure both signals a few times, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    result: dict[str, Any] = {}
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with tempfile.TemporaryDirectory() as top:
            runs = [measure(number, Path(top, str(index))) for index in range(rounds)]
        result[number.name] = {key: spread([run[key] for run in runs]) for key in runs[0]}
        for key, value in result[number.name].items():
            print(f"{number.name} {key}: {value['mean']:.1f} ± {value['sd']:.1f} s")
    print(f"written to {write_result('faults', result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
