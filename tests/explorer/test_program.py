"""The steps of a network: they describe what it computes, and running them gives the network's logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.small_networks import images, shaken
from torch import Tensor, nn

import mlpconv
from mlpconv.analysis import profile
from mlpconv.explorer.program import Program, read_program
from mlpconv.explorer.subject import forward
from mlpconv.models import create_model

SMALL = {
    "nin_tiny": {"norm": "batch", "activation": "leaky_relu"},
    "nin_cifar10": {},
    "googlenet": {"width": 0.25},
    "squeezenet": {"width": 0.25},
    "efficientnet_lite0": {"width": 0.5},
}


def doubled(model: nn.Module, size: tuple[int, int, int]) -> Program:
    program = read_program(model, size)
    program.graph.double().eval()
    for module in program.graph.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return program


@pytest.mark.parametrize("name", SMALL)
def test_running_the_steps_gives_the_logits(name: str) -> None:
    model = shaken(create_model(name, **SMALL[name]))
    size = (model.input_size[0], *(min(side, 97) for side in model.input_size[1:]))
    program, image = doubled(model, size), images(1, *size)
    last = forward(program, image, {})[program.nodes[-1]]
    with torch.no_grad():
        expected = model.double()(image)
    torch.testing.assert_close(last.reshape(1, -1), expected, rtol=1e-12, atol=1e-12)


def plain(step: dict[str, object], inputs: list[Tensor], module: nn.Module | None) -> Tensor:
    """What a step says that it computes, by torch.nn.functional alone."""
    x = inputs[0]
    pool = {"kernel_size": step.get("kernel"), "stride": step.get("stride"), "padding": step.get("padding")}
    match step["op"]:
        case "conv":
            weight = module.weight.reshape(-1, step["in"] // step["groups"], *step["kernel"])
            settings = (step["stride"], step["padding"], step["dilation"], step["groups"])
            return F.conv2d(x, weight, module.bias if step["bias"] else None, *settings)
        case "norm":
            return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=step["eps"])
        case "act":
            slope = [step["slope"]] if "slope" in step else []
            return getattr(F, step["fn"])(x, *slope)
        case "maxpool":
            return F.max_pool2d(x, **pool, ceil_mode=True)[..., : step["shape"][1], : step["shape"][2]]
        case "avgpool":
            ceil = F.avg_pool2d(x, **pool, ceil_mode=True, count_include_pad=step["countPad"])
            return ceil[..., : step["shape"][1], : step["shape"][2]]
        case "mean":
            return x.mean((2, 3), keepdim=True)
        case "cat":
            return torch.cat(inputs, 1)
        case "add":
            return inputs[0] + inputs[1]
        case "pad":
            return F.pad(x, step["pad"])
        case "flatten":
            return x.reshape(1, -1, 1, 1)
    raise AssertionError(step["op"])


@pytest.mark.parametrize("name", ["nin_tiny", "squeezenet", "efficientnet_lite0", "conv_cifar10_fc"])
def test_each_step_computes_what_its_settings_say(name: str) -> None:
    options = {"head": "fc"} if name == "conv_cifar10_fc" else SMALL[name]
    model = shaken(create_model("nin_tiny" if name == "conv_cifar10_fc" else name, **options))
    size = (model.input_size[0], *(min(side, 97) for side in model.input_size[1:]))
    program = doubled(model, size)
    computed = forward(program, images(1, *size), {})
    values = [
        computed[node].reshape(1, *step["shape"]) for node, step in zip(program.nodes, program.steps, strict=True)
    ]
    seen = set()
    for step in program.steps[1:]:
        with torch.inference_mode():
            expected = plain(step, [values[source] for source in step["inputs"]], program.module(step["id"]))
        torch.testing.assert_close(values[step["id"]], expected, rtol=1e-10, atol=1e-10)
        seen.add(step["op"])
    assert "conv" in seen


def test_unknown_operations_are_named_and_still_run() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sin(self.first(x))).mean((2, 3))

    program = doubled(Odd(), (1, 7, 11))
    assert [step["op"] for step in program.steps] == ["input", "conv", "other", "conv", "mean"]
    assert "sin" in program.steps[2]["module"]
    assert [step["inputs"] for step in program.steps] == [[], [0], [1], [2], [3]]


def test_parameters_and_multiply_adds_of_the_steps_are_those_of_the_profile() -> None:
    model = mlpconv.create_model("nin_cifar10")
    convs = [step for step in read_program(model, (3, 32, 32)).steps if step["op"] == "conv"]
    macs = sum(math.prod([*step["shape"], step["in"], *step["kernel"]]) for step in convs)
    assert macs == profile(model, (3, 32, 32)).totals.macs
