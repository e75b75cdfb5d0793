"""The queue before the workers: batches, the refusal of jobs that would wait too long, and readiness."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.wire import frame, receive
from mlpconv.deploy.worker_pool import MOST_CRASHES, Job, WorkerPool


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
        batches = [[one.images for one in await pool.next_batch()] for _ in range(3)]
        assert pool.waiting == 0
        return batches

    assert asyncio.run(run()) == [[3, 2], [20], [1]]


def test_a_job_that_would_wait_too_long_is_refused_at_once() -> None:
    async def run() -> None:
        pool = WorkerPool(Path("x"), latency=0.1)
        pool.workers[0].ready = pool.workers[0].busy = True
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


def test_a_small_slow_batch_hardly_changes_the_expected_wait() -> None:
    async def run() -> float:
        pool = WorkerPool(Path("x"))
        pool.observe(32, 0.32)
        pool.observe(1, 0.1)
        return pool.seconds_per_image

    assert asyncio.run(run()) == pytest.approx((0.8 * 0.32 + 0.1) / (0.8 * 32 + 1))


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
