"""Settings that a forward pass switches: the module becomes one node, or the network is rejected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.wrapped import Lambda
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlpconv.analysis import profile
from mlpconv.errors import SurgeryError
from mlpconv.surgery import fold, pool_head
from mlpconv.surgery.tracing.graph import trace

SHAPE = (3, 7, 5)
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")
CONTEXTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), "torch.autocast"),
    "autocast off": (lambda: torch.autocast("cpu", enabled=False), "torch.autocast"),
    "no_grad": (torch.no_grad, "gradients"),
    "set_grad_enabled": (lambda: torch.set_grad_enabled(False), "gradients"),
    "inference_mode": (torch.inference_mode, "inference_mode"),
    "attention": (lambda: sdpa_kernel(SDPBackend.MATH), "attention"),
    "cudnn": (lambda: torch.backends.cudnn.flags(enabled=False), "torch.backends"),
    "mkldnn": (lambda: torch.backends.mkldnn.flags(enabled=False), "torch.backends"),
    "dispatch mode": (lambda: FlopCounterMode(display=False), "TorchDispatchMode"),
    "saved tensors": (torch.autograd.graph.save_on_cpu, "saved tensors"),
    "dual numbers": (forward_ad.dual_level, "forward-mode"),
}


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def under(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[Any, Tensor], Tensor]:
    """Convolve under a context manager."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with context():
            return m.conv(x)

    return forward


def network(context: Callable[[], AbstractContextManager[Any]]) -> nn.Module:
    inside = Lambda(under(context), conv=nn.Conv2d(3, 6, 3))
    head = Lambda(lambda m, x: m.fc(x.float().mean((2, 3))), fc=nn.Linear(6, 5))
    return nn.Sequential(inside, head).eval()


@pytest.mark.parametrize("name", sorted(CONTEXTS))
def test_a_module_that_switches_a_setting_is_one_node(name: str) -> None:
    graph = trace(network(CONTEXTS[name][0]), SHAPE)
    assert [str(node.target) for node in graph.graph.find_nodes(op="call_module")] == ["0", "1.fc"]


@pytest.mark.parametrize("name", sorted(CONTEXTS))
def test_a_network_that_switches_a_setting_is_rejected(name: str) -> None:
    context, words = CONTEXTS[name]
    model = Lambda(under(context), conv=nn.Conv2d(3, 6, 3)).eval()
    with pytest.raises(SurgeryError, match=f"it switches [^:]*{words}"):
        trace(model, SHAPE)


def test_bfloat16_autocast_is_preserved() -> None:
    model = network(CONTEXTS["autocast"][0])
    changed = pool_head(model, SHAPE, latency=False).model
    with torch.no_grad():
        assert changed.get_submodule("0")(images(2, *SHAPE)).dtype is torch.bfloat16
        assert torch.allclose(changed(images(2, *SHAPE)), model(images(2, *SHAPE)), atol=1e-6)


def test_disabled_gradients_stay_disabled() -> None:
    with torch.no_grad():
        graph = trace(network(torch.no_grad), SHAPE)
    graph(images(2, *SHAPE)).sum().backward()
    assert [p.grad is None for p in graph.parameters()] == [True, True, False, False]


def test_settings_and_random_state_of_the_caller_do_not_change() -> None:
    def switching(m: Any, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        torch.manual_seed(7)
        return m.conv(x)

    model = Lambda(switching, conv=nn.Conv2d(3, 6, 3))
    state = torch.random.get_rng_state()
    with pytest.raises(SurgeryError, match="gradients"):
        trace(model, SHAPE)
    profile(model, SHAPE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_autocast_for_the_device_of_a_tensor_is_traced() -> None:
    """PyTorch has no autocast for the meta device."""

    def cast(m: Any, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return m.conv(x)

    model = nn.Sequential(Lambda(cast, conv=nn.Conv2d(3, 6, 3)), nn.ReLU()).eval()
    graph = trace(model, SHAPE)
    assert torch.equal(graph(images(1, *SHAPE)), model(images(1, *SHAPE)))
    assert profile(model, SHAPE).totals.macs == 6 * 5 * 3 * 27


def test_manual_seed_is_not_traced() -> None:
    def seeded(m: Any, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return x + torch.rand(x.shape)

    graph = trace(nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(seeded)), SHAPE)
    assert torch.equal(graph(images(1, *SHAPE)), graph(images(1, *SHAPE)))


def test_device_arguments_stay_in_the_graph() -> None:
    def placed(m: Any, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return m.conv(x) + torch.ones(x.shape[3] - 2)

    model = Lambda(placed, conv=nn.Conv2d(3, 6, 3)).eval()
    graph = trace(model, SHAPE)
    devices = [node.kwargs["device"] for node in graph.graph.nodes if "device" in node.kwargs]
    assert devices == [torch.device("cpu")]
    with torch.no_grad():
        assert torch.equal(graph(images(1, 3, 9, 8)), model(images(1, 3, 9, 8)))


def test_attention_without_a_context_is_traced() -> None:
    model = Lambda(lambda m, x: F.scaled_dot_product_attention(x, x, x)).eval()
    assert torch.equal(trace(model, SHAPE)(images(2, *SHAPE)), model(images(2, *SHAPE)))


def test_a_norm_next_to_an_untraceable_module_is_folded() -> None:
    model = network(CONTEXTS["autocast"][0])
    model.insert(0, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())
    result = fold(model, SHAPE)
    assert result.report.changed == ("0.0", "0.1")
