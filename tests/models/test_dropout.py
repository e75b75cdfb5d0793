"""Dropout with cheap masks: the right share, independent places, and the gradient of the plain layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpconv.models import create_model
from mlpconv.models.dropout import Dropout

SHAPE = (11, 13, 17, 19)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def ones(layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(SHAPE, dtype=dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_fraction_p_is_dropped_and_the_mean_is_kept(
    p: float, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(5)
    out = Dropout(p)(ones(layout, dtype))
    n = out.numel()
    dropped = int((out == 0).sum())
    assert abs(dropped - p * n) < 4 * (p * (1 - p) * n) ** 0.5
    kept = out[out != 0].float().unique()
    assert len(kept) == 1
    torch.testing.assert_close(float(kept), 1 / (1 - p), rtol=5e-3 if dtype != torch.float32 else 1e-3, atol=0)
    assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_outputs_and_gradients_are_the_inputs_under_one_mask(layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    x = torch.randn(SHAPE).to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(SHAPE).to(dtype).contiguous(memory_format=layout)
    out = Dropout(0.25)(x)
    out.backward(gradient)
    assert x.grad is not None
    mask = (out != 0).float().numpy()
    assert 0.7 < mask.mean() < 0.8
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(out.detach().float().numpy(), x.detach().float().numpy() * mask / 0.75, tolerance)
    np.testing.assert_allclose(x.grad.float().numpy(), gradient.float().numpy() * mask / 0.75, tolerance)


def test_neighbouring_elements_are_dropped_independently() -> None:
    torch.manual_seed(11)
    kept = (Dropout(0.5)(torch.ones(400_003)) != 0).double()
    for lane in range(8):
        assert abs(float(kept[lane::8].mean()) - 0.5) < 4 * 0.5 / 50_000**0.5
    centred = kept - kept.mean()
    for shift in (1, 2, 3, 4, 5, 8, 13):
        correlation = float((centred[shift:] * centred[:-shift]).mean() / 0.25)
        assert abs(correlation) < 4 / 400_000**0.5


def test_the_mask_depends_on_the_global_seed_only() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(ones()) != 0)
    assert masks[0].equal(masks[1]) and not masks[0].equal(masks[2])
    assert not masks[2].equal(Dropout(0.5)(ones()) != 0)


def test_p_0_and_eval_mode_drop_nothing_and_p_1_drops_all() -> None:
    x = ones()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x).equal(x)
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("x", [torch.ones(23, 29).T, torch.ones(SHAPE, dtype=torch.float64), torch.ones(5, 7, 3, 2, 2)])
def test_other_memory_formats_and_dtypes_work(x: Tensor) -> None:
    torch.manual_seed(3)
    out = Dropout(0.5)(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert out.shape == x.shape


def test_the_networks_of_the_paper_use_it() -> None:
    dropouts = [module for module in create_model("nin_cifar10").modules() if isinstance(module, nn.Dropout)]
    assert [type(module) for module in dropouts] == [Dropout, Dropout]
