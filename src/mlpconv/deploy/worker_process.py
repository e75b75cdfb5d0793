"""A worker process as the server sees it: it is sent batches, and started again whenever it ends."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.jobs import JobBatch
from mlpconv.deploy.wire import receive_async
from mlpconv.errors import ServerError

if TYPE_CHECKING:
    from mlpconv.deploy.worker_pool import WorkerPool

__all__ = ["WorkerProcess"]

IN_FLIGHT = 2  # batches: the next is decoded while one is computed
START_SECONDS = 60.0
PAUSE_SECONDS = 0.2  # before a worker that failed to start is started again
DIED = "The process that computed this answer died. Try again."
HUNG = "The answer took longer than {:g} seconds."


class WorkerProcess:
    """One process of a pool. `ready` says whether it has loaded the model, `batches` how many are with it."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.ready = self.stopping = False
        self.batches = self.images = 0
        self.free = asyncio.Event()  # no batch is with the process
        self.began = 0.0  # when the process began to compute the current batch
        self.sending, self.receiving = asyncio.Lock(), asyncio.Lock()
        self.tasks: list[asyncio.Task[None]] = []
        self.process: asyncio.subprocess.Process | None = None

    @property
    def idle(self) -> bool:
        """Whether the process waits for a batch."""
        return self.ready and not self.batches

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
        pool.arrival.set()  # jobs may wait for it

    def serve(self) -> None:
        """Start to compute the batches of the pool."""
        self.tasks = [asyncio.create_task(self._compute()) for _ in range(IN_FLIGHT)]

    async def _compute(self) -> None:
        """Compute one batch after the other."""
        while not self.stopping:
            await self._receive(*await self._send())

    async def _send(self) -> tuple[JobBatch, asyncio.subprocess.Process | None]:
        """Send the next batch; return it and the process that has it."""
        async with self.sending:
            await self._half_of_current()
            batch, process = await self.pool.next_batch(self), self.process
            if not self.batches:
                self.began = batch.sent
            self._count(batch, 1)
            try:
                async with asyncio.timeout(self.pool.compute_seconds):
                    self.writer.writelines(batch.message())
                    await self.writer.drain()
            except OSError:  # also a timeout: the process is replaced when its answer is missing
                self.writer.transport.abort()
            return batch, process

    async def _half_of_current(self) -> None:
        """Let jobs gather until about half of the current batch is computed: two small batches take longer than one."""
        expected = self.images * self.pool.seconds_per_image
        pause = (self.began + expected - time.monotonic()) / 2
        if self.batches and pause > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.free.wait()

    async def _receive(self, batch: JobBatch, process: asyncio.subprocess.Process | None) -> None:
        """Give the jobs of a batch their results; replace the process when it dies or hangs."""
        pool = self.pool
        try:
            async with self.receiving:  # in the order of sending
                if process is not self.process:  # it ended with the batch before
                    batch.fail(Refusal(503, "worker", DIED))
                    return
                try:
                    async with asyncio.timeout(pool.compute_seconds):
                        answer, payload = await receive_async(self.reader)
                    began, self.began = self.began, time.monotonic()
                    batch.settle(answer, payload)
                    pool.observe(batch.images, self.began - began)
                    seconds = answer["seconds"]
                    pool.stages.executed(batch.images, batch.waited, seconds["decode"], seconds["compute"])
                except TimeoutError:
                    await self._replace(batch, "hung", Refusal(504, "deadline", HUNG.format(pool.compute_seconds)))
                except (OSError, asyncio.IncompleteReadError, ValueError, KeyError):
                    await self._replace(batch, "died", Refusal(503, "worker", DIED))
        finally:
            self._count(batch, -1)

    def _count(self, batch: JobBatch, sign: int) -> None:
        """Count a batch that is sent (1), or is not with the process any longer (-1)."""
        self.batches += sign
        self.images += sign * batch.images
        self.pool.running += sign * batch.images
        self.free.clear() if self.batches else self.free.set()

    async def _replace(self, batch: JobBatch, reason: str, refusal: Refusal) -> None:
        """Fail the jobs of a batch, and start the process again."""
        self.ready = False
        batch.fail(refusal)
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
        """Let the current batches finish, then end the process."""
        self.stopping = True
        if self.tasks:
            if self.batches:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.pool.compute_seconds):
                        await self.free.wait()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        self.ready = False
        await self.kill()
