"""The clock of a contender: it counts laps and blocks the contender between its turns."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TextIO

__all__ = ["Over", "Rounds"]

LEAST_LAPS = 2
WARM = 0.2  # seconds of warm-up per round, at least one lap: caches, sleeping threads, batches prefetched in the pause


class Over(Exception):
    """The pipe of commands is closed."""


class Rounds:
    """Turn laps into rounds of `seconds`: wait for a command, warm up, time laps, answer, wait again.

    The first `ready_after` laps run before the first command; `asked` is the content of the latest command; `rest` is
    called before each wait.
    """

    def __init__(self, commands: TextIO, answers: TextIO, seconds: float, ready_after: int = 2) -> None:
        self.commands, self.answers, self.seconds, self.ready_after = commands, answers, seconds, ready_after
        self.facts: dict[str, Any] = {}
        self.laps_done, self.warm = 0, False
        self.asides: list[float] = []
        self.asked: dict[str, Any] = {}
        self.rest: Callable[[], object] = lambda: None
        self.begin()

    def begin(self) -> None:
        """Reset all measurements; the lap that starts now is the first."""
        self.laps: list[float] = []
        self.total = 0.0
        self.images, self.in_input = 0, 0.0
        self.faults, self.cpu = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        self.began = time.perf_counter()

    def lap(self, images: int) -> None:
        """Record the end of a step or batch of `images`; raise Over if no command follows."""
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
        """Record the work since the last lap as work that happens once per epoch, separate from the laps."""
        now = time.perf_counter()
        self.asides.append(now - self.began)
        self.began = now

    @contextmanager
    def input(self) -> Iterator[None]:
        """Count the time inside the block as time of the input pipeline."""
        start = time.perf_counter()
        yield
        self.in_input += time.perf_counter() - start

    def report(self) -> dict[str, Any]:
        """Return the measurements of the round and the constant facts."""
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
        """Block until the next command."""
        self.rest()
        line = self.commands.readline()
        if not line:
            raise Over
        self.asked = json.loads(line)
        self.warm, self.waited = False, time.perf_counter()
        self.begin()

    def answer(self, answer: dict[str, Any]) -> None:
        """Write the answer as one line of JSON."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
