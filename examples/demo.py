"""Demo of all commands on the embedded digits; `make demo` runs it.

Trains, evaluates, predicts one image file and draws category maps, in a new folder runs/demo-NNN.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from PIL import Image

import mlpconv
from mlpconv.cli import main as command_line


def next_free_folder(parent: Path) -> Path:
    """Return parent/demo-001, or the first free number after it."""
    number = 1
    while (folder := parent / f"demo-{number:03d}").exists():
        number += 1
    return folder


def run_command(*arguments: str | Path) -> None:
    """Print a command and run it; exit if it fails."""
    argv = [str(argument) for argument in arguments]
    print(f"\n$ {shlex.join(['mlpconv', *argv])}", flush=True)
    if code := command_line(argv):
        sys.exit(code)


def write_one_test_digit(path: Path) -> str:
    """Write the first test digit, 8 x 8 pixels, as a PNG; return its class."""
    digits = mlpconv.open_data("digits")
    test = digits.split("test")
    Image.fromarray(test.images[0, 0]).save(path)
    return str(digits.classes[int(test.labels[0])])


def main() -> None:
    """Run every command and print what to open first."""
    start = time.perf_counter()
    run = next_free_folder(Path("runs"))
    model, digit = run / "model.safetensors", run / "digit.png"
    run_command("train", "digits", "--out", run)
    run_command("evaluate", model, "digits")
    truth = write_one_test_digit(digit)
    print(f"\n{digit} is a test image of a {truth}:")
    run_command("predict", model, digit)
    run_command("maps", model, digit, "--out", run / "maps")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. All results are in {run}")
    print(f"Open first:  {run / 'report.html'}")


if __name__ == "__main__":
    main()
