"""What the workers of a server compute: jobs, their results, and what is reported of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.wire import frame

__all__ = ["Job", "JobBatch", "Result", "Stages"]


@dataclass(frozen=True)
class Result:
    """The outputs of a job, by name, for its readable images; and the errors of the others, by position."""

    outputs: dict[str, NDArray[np.float32]]
    errors: dict[int, dict[str, str]]


@dataclass(eq=False)
class Job:
    """Images to classify: encoded files, or one tensor of pixels."""

    parts: list[bytes | memoryview]
    outputs: tuple[str, ...]
    images: int
    shape: tuple[int, ...] | None = None
    """Of the tensor of pixels; None for files."""
    queued: float = field(default_factory=time.monotonic)
    future: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def describe(self) -> dict[str, Any]:
        """Return the part of the message to a worker about this job."""
        sizes = [len(part) if isinstance(part, bytes) else part.nbytes for part in self.parts]
        described: dict[str, Any] = {"sizes": sizes, "outputs": list(self.outputs)}
        return described if self.shape is None else described | {"shape": list(self.shape)}


class Stages:
    """What a pool reports: `queued`, then `executed` for each batch, and `restarted`. The base class ignores it."""

    def queued(self, images: int) -> None:
        """Report how many images wait."""

    def executed(self, images: int, waited: Sequence[float], decode: float, compute: float) -> None:
        """Report one batch: its images, and seconds of waiting (of each job), decoding and computing."""

    def restarted(self, reason: str) -> None:
        """Report that a worker is being replaced."""


@dataclass(eq=False)
class JobBatch:
    """Jobs that a worker computes together."""

    jobs: list[Job]
    sent: float = field(default_factory=time.monotonic)

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(job.images for job in self.jobs)

    @property
    def waited(self) -> list[float]:
        """The seconds that each job waited for a worker."""
        return [self.sent - job.queued for job in self.jobs]

    def message(self) -> list[bytes | memoryview]:
        """Return the pieces of the message to a worker."""
        return frame({"jobs": [job.describe() for job in self.jobs]}, [part for job in self.jobs for part in job.parts])

    def fail(self, refusal: Refusal) -> None:
        """Refuse all jobs that have no result."""
        for job in self.jobs:
            if not job.future.done():
                job.future.set_exception(refusal)

    def settle(self, answer: dict[str, Any], payload: memoryview) -> None:
        """Give each job its result; raise KeyError or ValueError for an answer that is none."""
        position = 0
        for job, result in zip(self.jobs, answer["results"], strict=True):
            position = _settle(job, result, payload, position)


def _settle(job: Job, result: dict[str, Any], payload: memoryview, position: int) -> int:
    """Give a job its result; return the position in the payload after it."""
    if "error" in result:
        if not job.future.done():
            job.future.set_exception(Refusal(422, "pixels", result["error"]))
        return position
    outputs = {}
    for name, shape in zip(job.outputs, result["shapes"], strict=True):
        count = int(np.prod(shape)) * 4
        outputs[name] = np.frombuffer(payload[position : position + count], np.float32).reshape(shape)
        position += count
    if not job.future.done():
        job.future.set_result(Result(outputs, {int(index): error for index, error in result["errors"].items()}))
    return position
