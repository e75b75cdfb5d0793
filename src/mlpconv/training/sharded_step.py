"""A training step on virtual shards: gradients are summed in a fixed order, whatever the number of processes.

A batch is divided into a power of two of virtual shards. Each process computes the gradients of its own shards and adds
them pairwise; the sums of all processes are added pairwise in the same order. Floating-point addition is commutative,
so the tree of additions alone decides the bits, and 1, 2 and 4 processes walk the same tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor, nn

from mlpconv.data.augment import generator
from mlpconv.data.sampler import Batch
from mlpconv.errors import UsageError
from mlpconv.models.base import Network
from mlpconv.text import option
from mlpconv.training.loss import losses
from mlpconv.training.optim import Optimizers
from mlpconv.training.process_group import Group, tree_sum
from mlpconv.training.recipe import Recipe
from mlpconv.training.seeding import seed_torch
from mlpconv.training.step import Inputs, Outcome, autocast, forward_pass, mixed

__all__ = ["ShardedStep", "check_shards", "resolve_shards"]

DEFAULT_SHARDS = 4  # under torchrun, unless there are more processes
MIN_IMAGES = 2  # of a shard: batch norm needs two


def resolve_shards(recipe: Recipe, group: Group | None) -> int:
    """Return the number of virtual shards: that of the recipe, or by default 1, and at least 4 under torchrun."""
    if recipe.virtual_shards:
        return recipe.virtual_shards
    return 1 if group is None else max(DEFAULT_SHARDS, group.size)


def check_shards(shards: int, smallest_batch: int, group: Group | None) -> None:
    """Raise UsageError for shards that the processes cannot divide, or that a batch of `smallest_batch` cannot fill."""
    processes = 1 if group is None else group.size
    if shards & (shards - 1):
        raise UsageError(f"virtual_shards={shards} is not accepted: give a power of two, such as 4.")
    if shards % processes:
        accepted = ", ".join(str(1 << power) for power in range(shards.bit_length()))
        more = "" if processes & (processes - 1) else f", or set {option('virtual_shards', processes)} in a new run"
        raise UsageError(
            f"virtual_shards={shards} cannot be divided among {processes} processes: start {accepted} of them{more}."
        )
    if shards > 1 and smallest_batch < MIN_IMAGES * shards:
        raise UsageError(
            f"virtual_shards={shards} needs batches of at least {MIN_IMAGES * shards} images, and the smallest batch "
            f"of this run has {smallest_batch}: raise batch_size, or use fewer shards and processes."
        )


class ShardedStep:
    """Update the weights once; dropout is seeded by (seed, step, shard), and batch norm sees one shard at a time.

    The running statistics of batch norm become the mean of those that each shard gives.
    """

    def __init__(
        self, model: Network, optimizers: Optimizers, recipe: Recipe, precision: str, group: Group | None
    ) -> None:
        self.model, self.optimizers, self.recipe = model, optimizers, recipe
        self.precision, self.group = precision, group

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Train on a batch, of which every process has all images; return the loss and correct predictions of all."""
        recipe, inputs = self.recipe, mixed(batch, self.recipe, step, self.model.num_classes)
        images, length = inputs.images, len(inputs.labels)
        shards = torch.tensor_split(torch.arange(length), recipe.virtual_shards)
        before = [buffer.clone() for buffer in self.model.buffers()]
        after: list[Tensor] = []
        vectors, counts = [], []
        for number in self.own_shards():
            rows = slice(int(shards[number][0]), int(shards[number][-1]) + 1)
            self.restore(before)
            seed_torch(generator(recipe.seed, f"dropout/{number}", step).initial_seed(), images.device)
            share = (rows.stop - rows.start) / length
            counts.append(self.backward(inputs.map(itemgetter(rows)), share))
            after = after or [buffer.clone() for buffer in self.model.buffers()]
            vectors.append(self.flatten(share))
        self.restore(after)  # counters; the statistics follow
        self.unflatten(self.add(tree_sum(vectors)))
        loss, correct = self.total(tree_sum(counts)).unbind()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizers.step()
        return Outcome(loss, correct, images.new_empty(0, self.model.num_classes))

    def own_shards(self) -> range:
        """Return the numbers of the shards of this process."""
        shards = self.recipe.virtual_shards
        if self.group is None:
            return range(shards)
        count = shards // self.group.size
        return range(self.group.rank * count, (self.group.rank + 1) * count)

    def backward(self, shard: Inputs, share: float) -> Tensor:
        """Compute the gradients of a shard, scaled by its `share` of the batch; return its loss and correct (2,)."""
        images, labels, targets, soft = shard
        self.optimizers.zero_grad()
        with autocast(self.precision, images.device):
            logits, auxiliary = forward_pass(self.model, images)
        loss, total = losses(logits, auxiliary, targets, soft, self.recipe)
        (total * share).backward()
        with torch.no_grad():
            return torch.stack([loss.double() * share, (logits.argmax(1) == labels).sum().double()])

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients, and the statistics of batch norm."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return gradients, [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]

    def flatten(self, share: float) -> Tensor:
        """Return gradients and statistics of a shard, weighted by its share, as one vector."""
        gradients, statistics = self.tensors()
        return torch.cat([*(g.reshape(-1) for g in gradients), *(s.reshape(-1) * share for s in statistics)])

    def unflatten(self, vector: Tensor) -> None:
        """Write a vector of `flatten` back into gradients and statistics."""
        tensors = [tensor for group in self.tensors() for tensor in group]
        for tensor, part in zip(tensors, vector.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def restore(self, buffers: Sequence[Tensor]) -> None:
        """Set the statistics and counters of batch norm."""
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def add(self, vector: Tensor) -> Tensor:
        """Return the sum of a vector over all processes, in the order of the shards unless the recipe frees it."""
        if self.group is None:
            return vector
        return self.group.all_reduce(vector) if self.recipe.gradient_sum == "free" else self.total(vector)

    def total(self, vector: Tensor) -> Tensor:
        """Return the sum of a vector over all processes, in the order of the shards."""
        return vector if self.group is None else self.group.tree_sum(vector)
