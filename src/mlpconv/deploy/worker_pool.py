"""The workers of a server and the queue before them: batches, the bound of the waiting, readiness."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpconv.deploy.guard import BUSY, Refusal
from mlpconv.deploy.jobs import Job, JobBatch, Result, Stages
from mlpconv.deploy.worker_process import WorkerProcess
from mlpconv.errors import ServerError

__all__ = ["WorkerPool"]

CRASH_WINDOW, MOST_CRASHES = 60.0, 5  # more crashes in this many seconds make the server unready
SMOOTHING = 0.2  # weight of the latest batch in the average time per image


class WorkerPool:
    """Processes that classify images. A job waits at most about `latency` seconds, or is refused at once."""

    def __init__(
        self,
        model: Path,
        *,
        engine: str = "auto",
        workers: int = 1,
        threads: int = 1,
        batch_size: int = 32,
        latency: float = 0.1,
        compute_seconds: float = 5.0,
        max_pixels: int = 25_000_000,
        stages: Stages | None = None,
        log: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Prepare `workers` processes of `threads` threads each; `start` starts them.

        A batch has up to `batch_size` images, and a worker `compute_seconds` to answer it.
        """
        self.model, self.engine, self.threads, self.max_pixels = model, engine, threads, max_pixels
        self.batch_size, self.latency, self.compute_seconds = batch_size, latency, compute_seconds
        self.stages, self.log = stages or Stages(), log
        self.jobs: deque[Job] = deque()
        self.waiting = self.running = 0  # images
        self.arrival = asyncio.Event()
        self.seconds_per_image = 0.0
        self.crashes: deque[float] = deque(maxlen=MOST_CRASHES)
        self.names: list[str] = []
        self.workers = [WorkerProcess(self) for _ in range(workers)]

    async def start(self) -> None:
        """Start the workers; raise ServerError if one cannot load the model."""
        try:
            await asyncio.gather(*(worker.launch() for worker in self.workers))
        except ServerError:
            await self.stop()
            raise
        for worker in self.workers:
            worker.serve()

    async def stop(self) -> None:
        """End the workers, after the jobs that they are computing."""
        for worker in self.workers:
            await worker.stop()

    @property
    def ready(self) -> bool:
        """Return whether a worker is ready, and few have crashed lately."""
        recent = [moment for moment in self.crashes if time.monotonic() - moment < CRASH_WINDOW]
        return len(recent) < MOST_CRASHES and any(worker.ready for worker in self.workers)

    async def submit(self, job: Job) -> Result:
        """Compute a job; raise Refusal if the queue is too long, or the worker dies or hangs."""
        self.admit()
        self.jobs.append(job)
        self.waiting += job.images
        self.stages.queued(self.waiting)
        self.arrival.set()
        return await job.future

    def admit(self) -> None:
        """Raise Refusal if a new job would wait too long."""
        free = any(worker.idle for worker in self.workers) and not self.jobs
        if not free and self.expected_wait() > self.latency:
            raise Refusal(503, "busy", BUSY)

    def expected_wait(self) -> float:
        """Return the seconds until a new job would start, from the recent time per image."""
        return (self.waiting + self.running) * self.seconds_per_image / len(self.workers)

    async def next_batch(self, worker: WorkerProcess) -> JobBatch:
        """Return the oldest jobs, up to `batch_size` images, for a worker; wait for one, and for the worker's turn.

        A worker that already has a batch leaves jobs to those that have none. Jobs whose client has gone are skipped.
        """
        while True:
            if worker.ready and (not worker.batches or not any(other.idle for other in self.workers)):
                batch = self._oldest()
                self.stages.queued(self.waiting)
                if batch.jobs:
                    if self.jobs:
                        self.arrival.set()  # for the other workers
                    return batch
            self.arrival.clear()
            await self.arrival.wait()

    def _oldest(self) -> JobBatch:
        """Take jobs from the queue."""
        taken: list[Job] = []
        images = 0
        while self.jobs and (not taken or images + self.jobs[0].images <= self.batch_size):
            job = self.jobs.popleft()
            self.waiting -= job.images
            if not job.future.cancelled():
                taken.append(job)
                images += job.images
        return JobBatch(taken)

    def observe(self, images: int, seconds: float) -> None:
        """Update the average time per image."""
        latest = seconds / max(1, images)
        old = self.seconds_per_image
        self.seconds_per_image = latest if not old else old + SMOOTHING * (latest - old)
