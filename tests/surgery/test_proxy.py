"""Proxies during tracing: no call may mistake a proxy for a real tensor."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.leaks import ONE_STEP, REFUSED, TRACED
from support.wrapped import Lambda
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.tracing.graph import trace

HERE = Path(__file__).parent
Outcome = tuple[str, bool, list[str]]


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, bool], Outcome]:
    """Return the outcome of tracing each call, in the network's own forward and in a submodule, in a subprocess."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "support" / "leaks.py")],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {lines[-1:]}: {done.stderr[-2000:]}"
    return {(name, inside): (reason, same, modules) for name, inside, reason, same, modules in lines}


@pytest.mark.parametrize("name", sorted(TRACED))
def test_recordable_calls_are_recorded(name: str, outcomes: dict[tuple[str, bool], Outcome]) -> None:
    for inside in (False, True):
        reason, same, modules = outcomes[name, inside]
        assert (reason, same) == ("", True)
        assert "1" not in modules


@pytest.mark.parametrize("name", sorted(ONE_STEP))
def test_an_unrecordable_call_makes_its_module_one_node(name: str, outcomes: dict[tuple[str, bool], Outcome]) -> None:
    assert outcomes[name, True] == ("", True, ["0", "1", "2"])
    reason, _, _ = outcomes[name, False]
    assert "Lambda, on images of 3x7x5, cannot be traced" in reason


@pytest.mark.parametrize("name", ["vmap", "func.grad", "TorchScript", "tensor", "without overrides"])
def test_an_unrecordable_call_is_named(name: str, outcomes: dict[tuple[str, bool], Outcome]) -> None:
    assert "it runs aten." in outcomes[name, False][0]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_call_that_needs_storage_is_rejected(name: str, outcomes: dict[tuple[str, bool], Outcome]) -> None:
    for inside in (False, True):
        assert outcomes[name, inside][0].startswith(("Lambda, on images", "Sequential, on images"))


# ---- Python's own protocols


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def by_rank(m: Any, x: Tensor) -> Tensor:
    return x * {3: 5, 4: 7}[x.ndim] + {4: 2}[x.dim()] + x.ndimension()


def attempted(x: Tensor) -> Tensor:
    """Catch any exception of tracing."""
    try:
        return x * float(x.mean())
    except Exception:  # noqa: BLE001  (as some networks do for portability)
        return x * 3


def tagged(m: Any, x: Tensor) -> Tensor:
    x.origin = 3
    y = m.conv(x)
    return y * x.origin if not hasattr(y, "origin") else y


@pytest.mark.parametrize(
    "function",
    [
        by_rank,
        tagged,
        lambda m, x: copy.copy(m.conv(x)) + copy.deepcopy(x),
        lambda m, x: x * np.float32(2) + np.float64(3) * x + np.int64(2),
        lambda m, x: {x: m.conv(x)}[x],
    ],
)
def test_python_protocols_treat_a_proxy_as_a_tensor(function: Any) -> None:
    model = Lambda(function, conv=nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        assert torch.equal(trace(model, (3, 7, 5))(images(3, 3, 9, 5)), model(images(3, 3, 9, 5)))


def test_a_proxy_reports_no_class_whose_memory_c_code_reads() -> None:
    claimed = []

    def forward(m: Any, x: Tensor) -> Tensor:
        kinds = (Tensor, torch.Size, torch.dtype, torch.UntypedStorage)
        claimed.extend(map(isinstance, (x, x.shape, x.dtype, x.untyped_storage()), kinds))
        return x

    trace(Lambda(forward).eval(), (3, 7, 5))
    assert claimed == [True, True, True, False]


class Masked(nn.Module):
    """Like attention: returns the output, and weights or None."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x * 2, None


def test_none_outputs_are_none() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, mask = m.part(x)
        return -y if mask is not None else y

    model = Lambda(forward, part=Masked()).eval()
    graph = trace(model, (3, 7, 5), opens=lambda name, _: not name)
    assert torch.equal(graph(images(2, 3, 7, 5)), model(images(2, 3, 7, 5)))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda m, x: x if x.shape[2] in {7, 14} else -x, "looks up an image size"),
        (lambda m, x: x * {7: 2.0}[x.shape[2]], "looks up an image size"),
        (lambda m, x: attempted(x), "depends on the values"),
        (lambda m, x: setattr(x, "requires_grad", False) or x, "sets .requires_grad of a Tensor"),
    ],
)
def test_untraceable_modules_are_one_node(function: Any, says: str) -> None:
    inside = nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(function)).eval()
    graph = trace(inside, (3, 7, 5))
    assert [str(node.target) for node in graph.graph.find_nodes(op="call_module")] == ["0", "1"]
    with torch.no_grad():
        assert torch.equal(graph(images(2, 3, 7, 5)), inside(images(2, 3, 7, 5)))
    with pytest.raises(SurgeryError, match=rf"\(line \d+ of test_proxy\.py\): it[^:]*{says}"):
        trace(Lambda(function).eval(), (3, 7, 5))
