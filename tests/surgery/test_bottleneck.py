"""Networks of lower rank: within their budget, better by activations than by weights, and the original as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mlpconv.analysis import profile
from mlpconv.errors import UsageError
from mlpconv.surgery import bottleneck


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 29, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(29, 31, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(31, 7, 1),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def images(count: int = 64) -> Tensor:
    """Smooth ones: what natural images have in common, and what makes responses vary in few directions."""
    draw = torch.Generator().manual_seed(1)
    return nn.functional.interpolate(torch.randn(count, 3, 3, 5, generator=draw), (13, 17), mode="bilinear")


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_the_budget_of_multiply_adds_is_kept(budget: float):
    model = network()
    before = copy.deepcopy(model.state_dict())
    result = bottleneck(model, images(), budget, curve=False)
    spent = profile(result.model, (3, 13, 17)).totals.macs / profile(model, (3, 13, 17)).totals.macs
    assert 0.8 * budget < spent <= budget
    assert result.model(images(5)).shape == (5, 7)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_activations_lose_less_than_weights():
    lost = {
        by: bottleneck(network(), images(), 0.4, by=by, curve=False).report.details["error"]
        for by in ("activations", "weights")
    }
    assert lost["activations"]["after"]["output"] < 0.5 * lost["weights"]["after"]["output"]


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": True}, {"of": "mac"}, {"by": "weight"}, {"fine_tune": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]):
    with pytest.raises(UsageError):
        bottleneck(network(), images(), **wrong)  # type: ignore[arg-type]
