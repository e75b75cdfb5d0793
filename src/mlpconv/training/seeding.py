"""Random numbers of a run, drawn from torch's generators without a trace in those of the caller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["keeping_random_states", "seed_torch"]


@contextmanager
def keeping_random_states(device: torch.device) -> Iterator[None]:
    """Put the random states of torch (CPU, and the GPUs where `device` is one), NumPy and `random` back at the end."""
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
    """Seed the generators that a run on `device` draws from.

    `torch.manual_seed` would also seed GPUs that nobody has used yet, and keep that for the day when somebody does.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
