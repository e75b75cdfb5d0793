"""Seeding of a run that leaves the random states of the caller unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["keeping_random_states", "seed_torch"]


@contextmanager
def keeping_random_states(device: torch.device) -> Iterator[None]:
    """Restore the random states of torch (CPU, and CUDA if `device` is a GPU), NumPy and `random` at the end."""
    python_state, cpu_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002  (the caller's)
    gpu_states = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators for `device`.

    `torch.manual_seed` would also seed GPUs that are not initialised yet, and so change the state of the caller.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
