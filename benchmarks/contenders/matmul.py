"""The peak speed of torch on this machine: the fastest of several matrix products, in float32 and in bfloat16."""

from __future__ import annotations

import time

import torch

from contenders import Settings
from contenders.rounds import Rounds

__all__ = ["peak"]

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (8192, 2400, 192))
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIES = 3
KEPT = 2  # shapes that are timed in each round
LONGEST = 1.0  # seconds per round: the peak runs as often as all contenders together


def peak(rounds: Rounds, settings: Settings) -> None:
    """Run both dtypes once per lap; `fp32` and `bf16` of the answer are the best FLOP/s of the laps of the round."""
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
    """Return the FLOP/s of one matrix product, measured over at least this many seconds."""
    start, count = time.perf_counter(), 0
    while (duration := time.perf_counter() - start) < seconds or not count:
        torch.mm(left, right)
        count += 1
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] * count / duration
