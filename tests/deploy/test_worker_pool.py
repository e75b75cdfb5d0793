"""The queue before the workers: batches, the refusal of jobs that would wait too long, and readiness."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from mlpconv.deploy import Predictor
from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.jobs import Job, Result
from mlpconv.deploy.wire import frame, receive
from mlpconv.deploy.worker_pool import MOST_CRASHES, WorkerPool


def job(images: int) -> Job:
    return Job([b"x"] * images, ("probabilities",), images)


def test_a_batch_has_the_oldest_jobs_up_to_its_size() -> None:
    async def run() -> list[list[int]]:
        pool = WorkerPool(Path("x"), batch_size=8)
        jobs = [job(images) for images in (3, 4, 2, 20, 1)]
        for one in jobs:
            pool.jobs.append(one)
            pool.waiting += one.images
        jobs[1].future.cancel()  # its client has gone
        [worker] = pool.workers
        worker.ready = True
        batches = [[one.images for one in (await pool.next_batch(worker)).jobs] for _ in range(3)]
        assert pool.waiting == 0
        return batches

    assert asyncio.run(run()) == [[3, 2], [20], [1]]


def test_a_job_that_would_wait_too_long_is_refused_at_once() -> None:
    async def run() -> None:
        pool = WorkerPool(Path("x"), latency=0.1)
        pool.workers[0].ready, pool.workers[0].batches = True, 1
        pool.observe(10, 0.5)
        pool.waiting, pool.running = 1, 2
        with pytest.raises(Refusal, match="busy"):
            await pool.submit(job(1))
        pool.waiting = 0
        waiting = asyncio.create_task(pool.submit(job(1)))
        await asyncio.sleep(0)
        assert pool.waiting == 1
        waiting.cancel()

    asyncio.run(run())


def test_many_crashes_in_a_minute_make_the_server_unready() -> None:
    async def run() -> None:
        pool = WorkerPool(Path("x"))
        assert not pool.ready
        pool.workers[0].ready = True
        for _ in range(MOST_CRASHES):
            assert pool.ready
            pool.crashes.append(time.monotonic())
        assert not pool.ready
        pool.crashes[0] -= 100
        assert pool.ready

    asyncio.run(run())


def test_a_worker_that_has_a_batch_leaves_jobs_to_an_idle_one() -> None:
    async def run() -> None:
        pool = WorkerPool(Path("x"), workers=2, batch_size=1)
        busy, idle = pool.workers
        busy.ready = idle.ready = True
        busy.batches = 1
        asking = asyncio.create_task(pool.next_batch(busy))
        pool.jobs += [job(1), job(1)]
        await asyncio.sleep(0)
        assert not asking.done()
        first = pool.jobs[0]
        assert (await pool.next_batch(idle)).jobs == [first]
        idle.batches = 1
        second = pool.jobs[0]
        assert (await asking).jobs == [second]

    asyncio.run(run())


@asynccontextmanager
async def started(model: Path) -> AsyncIterator[tuple[WorkerPool, Callable[[], asyncio.Task[Result]]]]:
    """Run a pool whose only worker is stopped; yield it and what submits an image."""
    pool = WorkerPool(model, engine="onnxruntime", batch_size=1, latency=1e9)
    await pool.start()
    [worker] = pool.workers
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    pixels = np.zeros(pool_input(model), np.uint8)
    try:
        yield pool, lambda: asyncio.create_task(pool.submit(Job([pixels.data], ("probabilities",), 1, pixels.shape)))
    finally:
        with suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGCONT)
        await pool.stop()


def pool_input(model: Path) -> tuple[int, ...]:
    return (1, *Predictor(model, engine="onnxruntime").input_size)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_two_batches_are_with_a_worker_and_fail_with_it(digits_onnx: Path) -> None:
    async def run() -> None:
        async with started(digits_onnx) as (pool, submit):
            answers = [submit() for _ in range(3)]
            await until(lambda: (pool.running, pool.waiting) == (2, 1))
            process = pool.workers[0].process
            assert process is not None
            process.kill()
            results = await asyncio.gather(*answers, return_exceptions=True)
            assert [getattr(result, "status", 200) for result in results] == [503, 503, 200]
            assert (pool.running, pool.waiting, len(pool.crashes)) == (0, 0, 1)

    asyncio.run(run())


def test_a_second_batch_gathers_jobs_until_half_of_the_first_is_computed(digits_onnx: Path) -> None:
    async def run() -> None:
        async with started(digits_onnx) as (pool, submit):
            pool.seconds_per_image = 3600
            first = submit()
            await until(lambda: pool.running == 1)
            second = submit()
            await asyncio.sleep(0.1)
            assert (pool.running, pool.waiting) == (1, 1)
            process = pool.workers[0].process
            assert process is not None
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):  # the worker is free sooner than expected: no reason to wait longer
                await asyncio.gather(first, second)

    asyncio.run(run())


def test_messages_keep_their_bytes_and_other_bytes_are_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for part in frame({"a": 1}, [b"bc", memoryview(b"d")]):
            ours.sendall(part)
        header, payload = receive(theirs)
        assert (header, bytes(payload)) == ({"a": 1}, b"bcd")
        ours.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionError, match="not a message"):
            receive(theirs)
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(frame({})[0][:5])
        with pytest.raises(ConnectionError, match="cut short"):
            receive(theirs)
