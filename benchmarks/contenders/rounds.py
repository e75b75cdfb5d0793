"""The clock of a contender: it works in laps, and is held still between its turns."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TextIO

__all__ = ["Over", "Rounds"]

LEAST_LAPS = 2
WARM_LAPS = 1  # at the start of every round: caches, threads that had gone to sleep, batches prepared in the pause


class Over(Exception):
    """Nobody asks any more."""


class Rounds:
    """Turns laps into rounds of `seconds`: waits for the word, skips a lap, times the others, answers, waits again.

    `ready_after` laps are run before the first word is waited for.
    """

    def __init__(self, commands: TextIO, answers: TextIO, seconds: float, ready_after: int = 2) -> None:
        self.commands, self.answers, self.seconds, self.ready_after = commands, answers, seconds, ready_after
        self.facts: dict[str, Any] = {}
        self.laps_done, self.skip = 0, WARM_LAPS
        self.asides: list[float] = []
        self.begin()

    def begin(self) -> None:
        """Forget what was timed; the lap that begins now is the first."""
        self.laps: list[float] = []
        self.images, self.in_input = 0, 0.0
        self.faults, self.cpu = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        self.began = time.perf_counter()

    def lap(self, images: int) -> None:
        """A step or batch of so many images is done; raises Over where nobody asks for more."""
        now = time.perf_counter()
        self.laps_done += 1
        if self.laps_done < self.ready_after:
            return
        if self.laps_done == self.ready_after:
            self.answer({"ready": True})
            self.wait()
        elif self.skip:
            self.skip -= 1
            self.begin()
        else:
            self.laps.append(now - self.began)
            self.images += images
            self.began = now
            if sum(self.laps) >= self.seconds and len(self.laps) >= LEAST_LAPS:
                self.answer(self.report())
                self.wait()

    def aside(self) -> None:
        """What was done since the last lap comes once an epoch: it is kept apart, and charged by its share."""
        now = time.perf_counter()
        self.asides.append(now - self.began)
        self.began = now

    @contextmanager
    def input(self) -> Iterator[None]:
        """What happens inside belongs to the input pipeline."""
        began = time.perf_counter()
        yield
        self.in_input += time.perf_counter() - began

    def report(self) -> dict[str, Any]:
        """What the round showed, and the facts that do not change."""
        seconds, usage = sum(self.laps), resource.getrusage(resource.RUSAGE_SELF)
        return self.facts | {
            "images": self.images,
            "seconds": seconds,
            "lap": median(self.laps),
            "input_share": self.in_input / seconds,
            "epoch_end": median(self.asides) if self.asides else 0.0,
            "faults": usage.ru_minflt - self.faults,
            "cpu_seconds": time.process_time() - self.cpu,
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }

    def wait(self) -> None:
        """Hold still until a round is asked for."""
        if self.commands.readline().strip() != "round":
            raise Over
        self.skip = WARM_LAPS
        self.begin()

    def answer(self, answer: dict[str, Any]) -> None:
        """One line of JSON to whoever asked."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
