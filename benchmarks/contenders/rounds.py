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
WARM = 0.2  # seconds at the start of a round, at least a lap: caches, sleeping threads, batches made in the pause


class Over(Exception):
    """Nobody asks any more."""


class Rounds:
    """Turns laps into rounds of `seconds`: waits for the word, warms up, times the others, answers, waits again.

    `ready_after` laps are run before the first word is waited for; `asked` is what the newest word asks for.
    """

    def __init__(self, commands: TextIO, answers: TextIO, seconds: float, ready_after: int = 2) -> None:
        self.commands, self.answers, self.seconds, self.ready_after = commands, answers, seconds, ready_after
        self.facts: dict[str, Any] = {}
        self.laps_done, self.warm = 0, False
        self.asides: list[float] = []
        self.asked: dict[str, Any] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was timed; the lap that begins now is the first."""
        self.laps: list[float] = []
        self.total = 0.0
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
        elif not self.warm:
            self.warm = now - self.waited >= WARM
            self.begin()
        else:
            self.laps.append(now - self.began)
            self.total += self.laps[-1]
            self.images += images
            self.began = now
            if self.total >= self.seconds and len(self.laps) >= LEAST_LAPS:
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
        seconds, usage = self.total, resource.getrusage(resource.RUSAGE_SELF)
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
        line = self.commands.readline()
        if not line:
            raise Over
        self.asked = json.loads(line)
        self.warm, self.waited = False, time.perf_counter()
        self.begin()

    def answer(self, answer: dict[str, Any]) -> None:
        """One line of JSON to whoever asked."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
