"""The workers of a server and the queue before them: batches, deadlines, replacement of workers that die or hang."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpconv.deploy.guard import BUSY, Refusal
from mlpconv.deploy.wire import frame, receive_async
from mlpconv.errors import ServerError

__all__ = ["Job", "Result", "Stages", "WorkerPool"]

CRASH_WINDOW, MOST_CRASHES = 60.0, 5  # more crashes in this many seconds make the server unready
START_SECONDS = 60.0
PAUSE_SECONDS = 0.2  # before a worker that failed to start is started again
KEPT = 0.8  # weight of the batches before in the average time per image
DIED = "The process that computed this answer died. Try again."
HUNG = "The answer took longer than {:g} seconds."


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
        self.recent: tuple[float, ...] = (0.0, 0.0)  # images and seconds
        self.crashes: deque[float] = deque(maxlen=MOST_CRASHES)
        self.names: list[str] = []
        self.workers = [_Worker(self) for _ in range(workers)]

    async def start(self) -> None:
        """Start the workers; raise ServerError if one cannot load the model."""
        try:
            await asyncio.gather(*(worker.launch() for worker in self.workers))
        except ServerError:
            await self.stop()
            raise
        for worker in self.workers:
            worker.task = asyncio.create_task(worker.serve())

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
        free = any(worker.ready and not worker.busy for worker in self.workers) and not self.jobs
        if not free and self.expected_wait() > self.latency:
            raise Refusal(503, "busy", BUSY)

    def expected_wait(self) -> float:
        """Return the seconds until a new job would start, from the recent time per image."""
        return (self.waiting + self.running) * self.seconds_per_image / len(self.workers)

    async def next_batch(self) -> list[Job]:
        """Return the oldest jobs, up to `batch_size` images, waiting for one; skip those whose client has gone."""
        while True:
            batch: list[Job] = []
            images = 0
            while self.jobs and (not batch or images + self.jobs[0].images <= self.batch_size):
                job = self.jobs.popleft()
                self.waiting -= job.images
                if not job.future.cancelled():
                    batch.append(job)
                    images += job.images
            self.stages.queued(self.waiting)
            if batch:
                return batch
            self.arrival.clear()
            await self.arrival.wait()

    def observe(self, images: int, seconds: float) -> None:
        """Update the average time per image; a small batch that took long counts little."""
        self.recent = tuple(KEPT * old + new for old, new in zip(self.recent, (images, seconds), strict=True))
        self.seconds_per_image = self.recent[1] / self.recent[0]


class _Worker:
    """One process, started again whenever it ends."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.ready = self.busy = self.stopping = False
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    async def launch(self) -> None:
        """Start the process and wait until it has loaded the model; raise ServerError if it cannot."""
        ours, theirs = socket.socketpair()
        pool, descriptor = self.pool, theirs.fileno()
        arguments = [str(pool.model), pool.engine, str(pool.threads), str(pool.max_pixels), str(descriptor)]
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "mlpconv.deploy.worker", *arguments,
                pass_fds=[descriptor], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        self.reader, self.writer = await asyncio.open_connection(sock=ours, limit=4 << 20)
        try:
            async with asyncio.timeout(START_SECONDS):
                hello, _ = await receive_async(self.reader)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            await self.kill()
            raise ServerError("A worker ended before it had loaded the model.") from error
        if "failed" in hello:
            await self.kill()
            raise ServerError(hello["failed"])
        self.ready = True
        pool.names = [hello["engine"], hello["choice"]]

    async def serve(self) -> None:
        """Compute batches; replace the process when it dies or hangs."""
        while not self.stopping:
            batch = await self.pool.next_batch()
            self.busy = True
            try:
                async with asyncio.timeout(self.pool.compute_seconds):
                    await self.compute(batch)
            except TimeoutError:
                await self.replace(batch, "hung", Refusal(504, "deadline", HUNG.format(self.pool.compute_seconds)))
            except (OSError, asyncio.IncompleteReadError, ValueError, KeyError):
                await self.replace(batch, "died", Refusal(503, "worker", DIED))
            finally:
                self.busy = False

    async def compute(self, batch: list[Job]) -> None:
        """Send a batch to the process and give each job its result."""
        pool, start = self.pool, time.monotonic()
        images = sum(job.images for job in batch)
        pool.running += images
        try:
            parts = [part for job in batch for part in job.parts]
            self.writer.writelines(frame({"jobs": [job.describe() for job in batch]}, parts))
            await self.writer.drain()
            answer, payload = await receive_async(self.reader)
        finally:
            pool.running -= images
        pool.observe(images, time.monotonic() - start)
        position = 0
        for job, result in zip(batch, answer["results"], strict=True):
            position = _settle(job, result, payload, position)
        waited = [start - job.queued for job in batch]
        pool.stages.executed(images, waited, answer["seconds"]["decode"], answer["seconds"]["compute"])

    async def replace(self, batch: list[Job], reason: str, refusal: Refusal) -> None:
        """Fail the jobs of a batch, and start the process again."""
        self.ready = False
        for job in batch:
            if not job.future.done():
                job.future.set_exception(refusal)
        await self.kill()
        if self.stopping:
            return
        self.pool.crashes.append(time.monotonic())
        self.pool.stages.restarted(reason)
        self.pool.log({"level": "error", "note": f"a worker {reason}; it is started again"})
        while not self.ready and not self.stopping:
            try:
                await self.launch()
            except ServerError as error:
                self.pool.crashes.append(time.monotonic())
                self.pool.log({"level": "error", "note": f"a worker failed to start: {error}"})
                await asyncio.sleep(PAUSE_SECONDS)

    async def kill(self) -> None:
        """End the process at once, if it runs, and wait for its end."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        if hasattr(self, "writer"):
            self.writer.close()

    async def stop(self) -> None:
        """Let the current batch finish, then end the process."""
        self.stopping = True
        if self.task is not None:
            deadline = time.monotonic() + self.pool.compute_seconds
            while self.busy and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        self.ready = False
        await self.kill()


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
