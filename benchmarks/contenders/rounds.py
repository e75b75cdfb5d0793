"""The clock of a contender, which runs in laps and is paused between its turns."""

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
WARM = 0.2  # seconds of warm-up per round, at least a lap: caches, sleeping threads, prefetched batches


class Over(Exception):
    """The parent has closed the pipe."""


class Rounds:
    """Group laps into rounds of `seconds`: wait for a request, warm up, time laps, answer, wait again.

    `ready_after` laps run before the first request; `asked` is the latest request.
    """

    def __init__(self, commands: TextIO, answers: TextIO, seconds: float, ready_after: int = 2) -> None:
        self.commands, self.answers, self.seconds, self.ready_after = commands, answers, seconds, ready_after
        self.facts: dict[str, Any] = {}
        self.laps_done, self.warm = 0, False
        self.asides: list[float] = []
        self.asked: dict[str, Any] = {}
        self.begin()

    def begin(self) -> None:
        """Reset the clock; the first lap starts now."""
        self.laps: list[float] = []
        self.total = 0.0
        self.images, self.in_input = 0, 0.0
        self.faults, self.cpu = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        self.began = time.perf_counter()

    def lap(self, images: int) -> None:
        """Record a step or batch of `images`; raise Over if the parent has closed the pipe."""
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
        """Record work since the last lap that happens once per epoch; it is timed separately."""
        now = time.perf_counter()
        self.asides.append(now - self.began)
        self.began = now

    @contextmanager
    def input(self) -> Iterator[None]:
        """Count the time of the block as input pipeline."""
        began = time.perf_counter()
        yield
        self.in_input += time.perf_counter() - began

    def report(self) -> dict[str, Any]:
        """Return the measurements of the round, and the constant facts."""
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
        """Wait for the next request."""
        line = self.commands.readline()
        if not line:
            raise Over
        self.asked = json.loads(line)
        self.warm, self.waited = False, time.perf_counter()
        self.begin()

    def answer(self, answer: dict[str, Any]) -> None:
        """Send one line of JSON to the parent."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
