"""Measure the peak: the fastest of several matrix products in torch, in float32 and bfloat16."""

from __future__ import annotations

import time

import torch

from contenders import Settings
from contenders.rounds import Rounds

__all__ = ["peak"]

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (8192, 2400, 192))
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIES = 3
KEPT = 2  # of the shapes are timed in each round
LONGEST = 1.0  # seconds of a round: it is asked for twice as often as all others together


def peak(rounds: Rounds, settings: Settings) -> None:
    """Measure both dtypes in each lap; `fp32` and `bf16` of the answer are the best FLOP/s of the round."""
    from mlpconv.training.memory import keep_freed_memory

    keep_freed_memory()
    rounds.seconds = min(rounds.seconds, LONGEST)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    operands = {name: [(torch.rand(m, k).to(t), torch.rand(k, n).to(t)) for m, k, n in SHAPES]
                for name, t in TYPES.items()}  # fmt: skip
    for name, pairs in operands.items():
        pairs.sort(key=lambda pair: max(rate(*pair) for _ in range(TRIES)), reverse=True)
        operands[name] = pairs[:KEPT]
    rounds.facts["threads"] = torch.get_num_threads()
    while True:
        if not rounds.laps:
            rounds.facts |= dict.fromkeys(TYPES, 0.0)
        for name, pairs in operands.items():
            rounds.facts[name] = max(rounds.facts[name], *(rate(*pair) for pair in pairs))
        rounds.lap(1)


@torch.no_grad()
def rate(left: torch.Tensor, right: torch.Tensor, seconds: float = 0.05) -> float:
    """Return FLOP/s of one product, measured for at least the given seconds."""
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not done:
        torch.mm(left, right)
        done += 1
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] * done / passed
