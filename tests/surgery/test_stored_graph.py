"""Stored graphs, of any length and with any function."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mlpconv.surgery import convolutionalize
from mlpconv.surgery.tracing.graph import as_module, trace
from mlpconv.surgery.tracing.rewritten import Rewritten
from mlpconv.surgery.tracing.stored_graph import restore_graph, store_graph


class Every(nn.Module):
    """Call functions that Python cannot pickle, with slices, sizes and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.conv(x), 2, return_indices=False)
        y = torch.ops.aten.relu.default(y[:, :, : y.shape[2] - 1]) + torch.ops.aten.sigmoid(y[..., 1:, :])
        y = F.pad(y, (1, 0), value=0.5)
        return self.fc(F.adaptive_max_pool2d(y, 1).flatten(1))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_a_graph_survives_pickling() -> None:
    model = Every().eval()
    traced = trace(model, (3, 11, 13))
    again = as_module(traced, restore_graph(pickle.loads(pickle.dumps(store_graph(traced.graph)))))
    assert store_graph(again.graph) == store_graph(traced.graph)
    assert torch.equal(again(images(2, 3, 11, 13)), model(images(2, 3, 11, 13)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_convolutionalized_network_survives_copying_and_pickling(copied: object) -> None:
    changed = convolutionalize(Every().eval(), (3, 11, 13), latency=False).model
    for other in (copied(changed), copied(copied(changed))):
        for shape in ((2, 3, 11, 13), (1, 3, 19, 17)):
            assert torch.equal(other(images(*shape)), changed(images(*shape)))
            assert torch.equal(other.category_maps(images(*shape)), changed.category_maps(images(*shape)))


def test_a_long_network_can_be_pickled_and_copied() -> None:
    """Nodes reference each other, so pickling a long graph directly exceeds Python's recursion limit."""
    graph = fx.Graph()
    last = graph.placeholder("x")
    for _ in range(1500):
        last = graph.call_function(torch.relu, (last,))
    graph.output(last)
    network = Rewritten(nn.Sequential(), {"eval": graph}, {}).eval()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images(7)), images(7).relu())
    with pytest.raises(RecursionError):
        pickle.dumps(graph)


def test_a_traced_network_survives_pickling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()).eval()
    assert torch.equal(
        pickle.loads(pickle.dumps(trace(model, (3, 9, 7))))(images(1, 3, 9, 7)), model(images(1, 3, 9, 7))
    )
