"""Run one search in many forked processes, kill some of them, and print how each ended.

    python search_driver.py FOLDER PROCESSES KILLS TRIALS SEED

Prints a JSON object: `codes` of the processes, `killed` numbers of the trials that a killed process held.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mlpconv.data import Dataset, Split
from mlpconv.search import run_search

OVER = ["width=0.1..0.5", "depth=1..3", "lr=0.01..0.2"]
SETTINGS = {"epochs": 3, "batch_size": 16, "precision": "fp32", "checkpoint_minutes": 0}
TIMEOUT = 240.0  # seconds


def tiny() -> Dataset:
    """Return two classes of 8 x 8 images: 64 for training, 16 for validation."""

    def split(length: int, seed: int) -> Split:
        labels = np.arange(length, dtype=np.int64) % 2
        images = np.random.default_rng(seed).integers(0, 256, (length, 1, 8, 8), dtype=np.uint8)
        images[labels == 1, :, :4] //= 8
        return Split(images, labels)

    return Dataset("tiny", ("even", "odd"), {"train": split(64, 0), "val": split(16, 1)}, (), "f" * 64)


def start(folder: Path, trials: int, log: Path, slow: bool) -> int:
    """Fork a process that works on the search; return its id. A slow one cannot end before it is killed."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        os.fsync = lambda _: time.sleep(0.02 * slow)
        run_search(tiny(), OVER, out=folder, trials=trials, prune=False, **SETTINGS)
        code = 0
    finally:
        if code:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def holder(folder: Path, child: int) -> int | None:
    """Return the number of the trial whose claim a process holds open."""
    for entry in Path(f"/proc/{child}/fd").iterdir():
        try:
            target = entry.readlink()
        except OSError:
            continue
        if target.parent == folder / "claims":
            return int(target.stem)
    return None


def main() -> None:
    """Fork, kill, wait and report."""
    torch.set_num_threads(1)
    folder, log = Path(sys.argv[1]).resolve(), Path(sys.argv[1]).resolve().with_suffix(".log")
    processes, kills, trials, seed = map(int, sys.argv[2:6])
    children = [start(folder, trials, log, number < kills) for number in range(processes)]
    rng, killed, begun = random.Random(seed), [], time.monotonic()
    victims = children[:kills]
    codes = {}
    while len(codes) < len(children) and time.monotonic() - begun < TIMEOUT:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
            continue
        if victims and victims[0] not in codes:
            held = holder(folder, victims[0])
            started = held is not None and (folder / "trials" / f"{held:04d}" / "checkpoints").is_dir()
            if started and rng.random() < 0.2:
                os.kill(victims.pop(0), signal.SIGKILL)
                killed.append(held)
        time.sleep(0.01)
    for child in set(children) - set(codes):
        os.kill(child, signal.SIGKILL)
    print(json.dumps({"codes": [codes.get(child, "timeout") for child in children], "killed": killed}))


if __name__ == "__main__":
    main()
