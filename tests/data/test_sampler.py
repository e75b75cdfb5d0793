"""Batches depend only on the step: every image once per epoch, with any number of workers."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.data.augment import generator
from mlpconv.data.sampler import Batch, Sampler, permutation, prefetch


def numbered(step: int) -> Batch:
    return Batch(torch.full((1, 1, 1, 1), float(step)), torch.tensor([step]))


# --- order


@given(
    length=st.integers(1, 499), batch_size=st.integers(1, 600), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 99)
)
def test_every_image_is_sampled_once_per_epoch_in_balanced_batches(length: int, batch_size: int, seed: int, epoch: int):
    order = Sampler(length, batch_size, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [order.indices(step) for step in steps]
    assert sorted(torch.cat(batches).tolist()) == list(range(length))
    lengths = {len(batch) for batch in batches}
    assert max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1
    assert order.steps_per_epoch == -(-length // batch_size)
    assert {order.epoch(step) for step in steps} == {epoch}


def test_a_step_does_not_depend_on_earlier_steps():
    length, batch_size, seed = 101, 13, 5
    sequence = [Sampler(length, batch_size, seed).indices(step) for step in range(41)]
    for step in (17, 3, 40, 17, 0):
        torch.rand(3)
        assert torch.equal(Sampler(length, batch_size, seed).indices(step), sequence[step])


def test_every_epoch_and_seed_has_its_own_order():
    orders = {tuple(Sampler(47, 47, seed).indices(epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(range(47)) not in orders


def test_every_image_reaches_every_position():
    places = torch.stack([Sampler(7, 7, 3).indices(epoch) for epoch in range(499)])
    for image in range(7):
        counts = (places == image).sum(0)
        assert counts.min() > 40  # of 71 expected
        assert counts.max() < 105


def test_the_cached_order_cannot_be_changed():
    order = Sampler(11, 5, 0)
    first = [order.indices(step).tolist() for step in range(3)]
    torch.manual_seed(0)
    assert [order.indices(step).tolist() for step in range(3)] == first


# --- workers


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_number_of_workers_does_not_change_the_batches(workers: int):
    def slow_at_random(step: int) -> Batch:
        time.sleep(0.002 * (step * 7919 % 5))
        return numbered(step)

    assert [int(batch.labels) for batch in prefetch(slow_at_random, 5, 36, workers)] == list(range(5, 36))
    assert list(prefetch(slow_at_random, 7, 7, workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_prefetch_only_a_few_batches(workers: int):
    made: list[tuple[int, str]] = []

    def noting(step: int) -> Batch:
        made.append((step, threading.current_thread().name))
        return numbered(step)

    for batch in prefetch(noting, 0, 29, workers):
        time.sleep(0.001)
        assert max(step for step, _ in made) <= int(batch.labels) + workers + 1
    names = {name for _, name in made}
    assert threading.current_thread().name not in names
    assert all(name.startswith("batch") for name in names)
    assert len(names) <= workers


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_an_error_in_a_worker_is_raised_after_the_earlier_batches(workers: int):
    loaded: list[int] = []

    def failing(step: int) -> Batch:
        loaded.append(step)
        if step == 6:
            raise OSError("a disk is gone")
        return numbered(step)

    seen: list[int] = []
    with pytest.raises(OSError, match="a disk is gone"):
        for batch in prefetch(failing, 0, 10**6, workers):
            seen.append(int(batch.labels))  # noqa: PERF401  (what came before the error is to be kept)
    assert seen == list(range(6))
    assert max(loaded) <= 6 + workers + 1


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_closing_early_ends_the_threads(workers: int):
    before = threading.active_count()
    batches = prefetch(numbered, 0, 10**6, workers)
    assert int(next(batches).labels) == 0
    assert before + min(workers, 1) <= threading.active_count() <= before + workers
    batches.close()
    assert threading.active_count() == before


def test_closing_early_cancels_pending_batches():
    asked: list[int] = []

    def slow(step: int) -> Batch:
        asked.append(step)
        if step:
            time.sleep(0.05)
            raise OSError("nobody wants this batch")
        return numbered(step)

    batches = prefetch(slow, 0, 10**6, 1)
    next(batches)
    batches.close()
    assert len(asked) <= 2


def test_a_worker_flushes_denormals_as_the_trainer_does():
    """Workers flush denormals even if the thread that starts them does not (on Linux, threads inherit the setting)."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    torch.set_flush_denormal(False)
    tiny = torch.tensor([1e-30])
    made = prefetch(lambda _: Batch((tiny * 1e-10).view(torch.int32), tiny), 0, 3, workers=2)
    products = [int(batch.images) for batch in made]  # as bits: to read such a number flushes it too
    assert products == [0] * 3
    assert int((tiny * 1e-10).view(torch.int32)) != 0


# --- windows


@given(length=st.integers(1, 499), window=st.integers(1, 600), seed=st.integers(0, 99))
def test_windows_are_read_one_after_another(length: int, window: int, seed: int):
    order = torch.cat([Sampler(length, 7, seed, window).indices(step) for step in range(-(-length // 7))])
    assert sorted(order.tolist()) == list(range(length))
    visited = torch.unique_consecutive(order // window)
    assert sorted(visited.tolist()) == list(range(-(-length // window)))  # each window once


def test_windows_are_shuffled_within_and_among_and_anew_in_each_epoch():
    first, second = (torch.cat([Sampler(600, 50, 1, 100).indices(12 * e + s) for s in range(12)]) for e in (0, 1))
    assert not torch.equal(first, second)
    assert torch.unique_consecutive(first // 100).tolist() != list(range(6))
    assert (first[:100].diff() < 0).sum() > 30


def test_a_full_shuffle_is_the_order_of_before():
    """The order of a seed is part of every published result."""
    assert Sampler(10, 4, 0).indices(0).tolist() == torch.tensor_split(permutation(10, 0, 0), 3)[0].tolist()
    assert torch.equal(permutation(10, 0, 0), torch.randperm(10, generator=generator(0, "order", 0)))
