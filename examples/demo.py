"""The whole product on the embedded digits, by the same commands a user types; `make demo` runs it.

It trains, evaluates, predicts one image file and draws category maps, all in one new folder runs/demo-NNN.
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
    """parent/demo-001, or the first number after it that nothing has."""
    number = 1
    while (folder := parent / f"demo-{number:03d}").exists():
        number += 1
    return folder


def say_and_run(*words: str | Path) -> None:
    """Show a command as one would type it, and run it; stop the demo where it fails."""
    argv = [str(word) for word in words]
    print(f"\n$ {shlex.join(['mlpconv', *argv])}", flush=True)
    if code := command_line(argv):
        sys.exit(code)


def write_one_test_digit(path: Path) -> str:
    """Write the first held-out digit, 8 x 8 pixels, as a PNG; gives its true class."""
    digits = mlpconv.open_data("digits")
    test = digits.split("test")
    Image.fromarray(test.images[0, 0]).save(path)
    return digits.classes[test.labels[0]]


def main() -> None:
    """Run every step and say what to open first."""
    began = time.perf_counter()
    run = next_free_folder(Path("runs"))
    model, digit = run / "model.safetensors", run / "digit.png"
    say_and_run("train", "digits", "--out", run)
    say_and_run("evaluate", model, "digits")
    truth = write_one_test_digit(digit)
    print(f"\n{digit} is a held-out image of a {truth}:")
    say_and_run("predict", model, digit)
    say_and_run("maps", model, digit, "--out", run / "maps")
    print(f"\nDone in {time.perf_counter() - began:.0f} s. Everything is in {run}")
    print(f"Open first:  {run / 'report.html'}")


if __name__ == "__main__":
    main()
