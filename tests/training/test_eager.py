"""Optimizers without compiler wrappers: bit-identical to PyTorch's, and without importing the compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlpconv.training import eager

TRAIN = """
import sys
import mlpconv, torch
from mlpconv.training.optim import make_optimizers
model = mlpconv.create_model("nin_tiny", width=0.25)
for rule in ("sgd", "adamw", "muon"):
    optimizers = make_optimizers(model, mlpconv.Recipe(optimizer=rule))
    optimizers.zero_grad()
    model.category_maps(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizers.step()
    optimizers.load_tensors(optimizers.tensors())
mlpconv.fit("digits", out="run", epochs=1, min_steps=1, width=0.25, ema=0.9, whiten=True)
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""


def three_steps(kind: Any, **settings: Any) -> list[Tensor]:
    torch.manual_seed(3)
    weight = nn.Parameter(torch.randn(5, 7))
    optimizer = kind([{"params": [weight], "weight_decay": 0.1}], lr=0.3, **settings)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        (weight**3).sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    again = kind([{"params": [weight]}], lr=0.1)
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == 0.3
    return [weight.detach(), *(value for value in state["state"][0].values() if isinstance(value, Tensor))]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True, "fused": True}),
        ("SGD", {"momentum": 0.7}),
        ("AdamW", {"betas": (0.8, 0.99), "fused": True}),
    ],
)
def test_steps_equal_pytorchs_bit_for_bit(name: str, settings: dict[str, Any]) -> None:
    ours = three_steps(getattr(eager, name), **settings)
    theirs = three_steps(getattr(torch.optim, name), **settings)
    assert len(ours) == len(theirs) >= 2
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_training_does_not_import_the_compiler(tmp_path: Any) -> None:
    ran = subprocess.run([sys.executable, "-c", TRAIN], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.stdout.splitlines()[-1:] == ["True False"], ran.stderr
