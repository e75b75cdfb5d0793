"""The training loop with virtual shards, in one or several processes that take every decision together."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch

from mlpconv.data import Split
from mlpconv.data.sampler import Batch
from mlpconv.training.loop import EVAL_BATCH, Trainer
from mlpconv.training.process_group import Group
from mlpconv.training.sharded_step import ShardedStep
from mlpconv.training.step import Outcome

__all__ = ["ShardedTrainer"]


class ShardedTrainer(Trainer):
    """A Trainer whose step and validation are shared by the processes of a group; rank 0 writes the files.

    All processes hold the same weights and metrics, and so end epochs, repair and stop at the same step.
    """

    def __init__(self, group: Group | None, *parts: Any) -> None:
        super().__init__(*parts)
        self.group = group
        self.writes = group is None or group.rank == 0
        state = self.state
        self.sharded = ShardedStep(state.model, state.optimizers, self.recipe, state.precision, group)

    def run_step(self, batch: Batch) -> Outcome:
        """Update the weights once."""
        return self.sharded(batch, self.state.step) if self.recipe.virtual_shards > 1 else super().run_step(batch)

    def scores(self, split: Split) -> list[tuple[float, int]]:
        """Return loss and correct predictions of every chunk of a split; each process computes every n-th chunk."""
        group = self.group
        if group is None:
            return super().scores(split)
        starts = range(0, len(split), EVAL_BATCH)
        own = torch.zeros(len(starts), 2, dtype=torch.float64, device=group.device)
        for number in range(group.rank, len(starts), group.size):
            own[number] = torch.tensor(self.score(split, starts[number]), dtype=torch.float64)
        total = torch.stack(group.all_gather(own.flatten())).sum(0).view_as(own)  # all terms of a sum but one are zero
        return [(float(loss), int(correct)) for loss, correct in total.tolist()]

    def end_epoch(self) -> None:
        """Check that all processes have the same weights, and end the epoch."""
        if self.group is not None:
            digest = hashlib.blake2b(digest_size=16)
            for value in self.state.model.state_dict().values():
                digest.update(value.contiguous().cpu().view(-1).numpy().tobytes())
            self.group.check_same("weights", digest.digest())
        super().end_epoch()

    def save(self) -> Path:
        """Write a checkpoint on rank 0; raises NonFiniteError on every process if a weight is not finite."""
        if self.writes:
            return super().save()
        if not self.state.finite():
            raise self.non_finite_error("a weight became NaN or infinite")
        self.update_clocks()
        self.saved_at, self.saved_step = time.monotonic(), self.state.step
        return self.folder

    def stop_if_requested(self) -> None:
        """Save and raise Interrupted after the same step on every process, if one of them received a signal."""
        group = self.group
        if group is not None:
            if self.state.step % self.check_every:
                return
            own = torch.tensor([self.stop.signal or 0], device=group.device)
            agreed = max(int(value) for value in group.all_gather(own))
            if not agreed:  # a signal that came meanwhile counts after the next step
                return
            self.stop.signal = agreed
        super().stop_if_requested()
