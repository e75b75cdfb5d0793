"""Virtual shards: the order of the sum, and a step that equals one on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mlpconv.data.sampler import Batch
from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.training import Recipe
from mlpconv.training.optim import make_optimizers
from mlpconv.training.process_group import tree_sum
from mlpconv.training.sharded_step import ShardedStep, check_shards, resolve_shards
from mlpconv.training.step import train_step


def test_the_tree_is_the_same_for_every_number_of_processes() -> None:
    parts = list(
        torch.randn(8, 1013, generator=torch.Generator().manual_seed(0)) * 10 ** torch.arange(-4.0, 4)[:, None]
    )
    whole = tree_sum(parts)
    for size in (2, 4, 8):
        count = 8 // size
        sums = [tree_sum(parts[rank * count : (rank + 1) * count]) for rank in range(size)]
        assert torch.equal(tree_sum(sums), whole)
    assert not torch.equal(sum(parts[1:], parts[0]), whole)  # the order matters
    torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-3)


def network(norm: str | None = None) -> Any:
    torch.manual_seed(0)
    return create_model("nin_tiny", num_classes=3, width=0.25, norm=norm, dropout=0.0, init="he")


def batch() -> Batch:
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.randn(13, 1, 8, 8, generator=rng), torch.randint(0, 3, (13,), generator=rng))


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.4, "label_smoothing": 0.1, "clip": 0.01}])
def test_a_sharded_step_is_a_step_on_the_whole_batch(settings: dict[str, Any]) -> None:
    recipe = Recipe(optimizer="sgd", lr=0.1, virtual_shards=4, **settings)
    plain, sharded = network(), network()
    expected = train_step(plain, make_optimizers(plain, recipe), batch(), recipe, 7, "fp32")
    outcome = ShardedStep(sharded, make_optimizers(sharded, recipe), recipe, "fp32", None)(batch(), 7)
    torch.testing.assert_close(outcome.loss.float(), expected.loss)
    assert int(outcome.correct) == int(expected.correct)
    for own, other in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_statistics_are_the_weighted_mean_of_those_of_the_shards() -> None:
    recipe = Recipe(virtual_shards=4)
    model = network("batch")
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    images, labels, _ = batch()
    with torch.no_grad():
        means = [first(shard).mean((0, 2, 3)) * len(shard) / 13 for shard in torch.tensor_split(images, 4)]
    ShardedStep(model, make_optimizers(model, recipe), recipe, "fp32", None)(Batch(images, labels), 0)
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.stack(means).sum(0), rtol=1e-4, atol=1e-6)
    assert int(norm.num_batches_tracked or 0) == 1


def test_each_shard_drops_other_activations() -> None:
    recipe = Recipe(virtual_shards=2, optimizer="sgd")
    torch.manual_seed(0)
    model = create_model("nin_tiny", num_classes=3, width=0.25, dropout=0.5)
    images, labels, _ = batch()
    twice = Batch(images[:4].repeat(2, 1, 1, 1), labels[:4].repeat(2))
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    ShardedStep(model, make_optimizers(model, recipe), recipe, "fp32", None)(twice, 0)
    assert len(seen) == 2
    assert not torch.equal(seen[0] == 0, seen[1] == 0)


def test_the_default_number_of_shards() -> None:
    assert resolve_shards(Recipe(), None) == 1
    assert resolve_shards(Recipe(virtual_shards=8), None) == 8


@pytest.mark.parametrize(
    ("shards", "smallest", "said"), [(3, 99, "give a power of two"), (8, 15, "needs batches of at least 16 images")]
)
def test_shards_that_are_refused(shards: int, smallest: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_shards(shards, smallest, None)
    check_shards(8, 16, None)
    check_shards(1, 1, None)
