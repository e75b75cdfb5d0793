"""Every operation preserves the outputs of random networks or refuses with a reason, and changes nothing else.

Equality is tested here in float64 and on gradients, independently of the operations' own verification.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from gradients import seen_by
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import POOLS, Functions, Network, Pooled, Rules, networks
from support.small_networks import close, images
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlpconv.analysis import profile
from mlpconv.errors import SurgeryError
from mlpconv.surgery import Surgery, convolutionalize, deepen, factorize, fold, pool_head

Shape = tuple[int, int, int]
HEADS = ("pool", "flatten", "adaptive", "uneven")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def examples(few: int) -> Any:
    """Parametrize with a few networks, and with ten times as many as a slow test."""
    return pytest.mark.parametrize("count", [few, pytest.param(10 * few, marks=pytest.mark.slow)])


def on_random_networks(count: int, check: Callable[..., str], heads: tuple[str, ...] = HEADS) -> Counter[str]:
    """Count the answers of `check` over random networks in float64; hypothesis shrinks a failing network."""
    answers: Counter[str] = Counter()
    rules = st.sampled_from([Rules(functions=True), Rules(padded=False)])

    @settings(max_examples=count)
    @given(rules.flatmap(lambda each: networks(heads, each, least=2)), st.randoms(use_true_random=False))
    def run(network: tuple[Network, Shape], chance: random.Random) -> None:
        answers[check(*prepared(*network, chance), chance)] += 1

    run()
    return answers


def prepared(model: nn.Module, shape: Shape, chance: random.Random) -> tuple[nn.Module, Shape]:
    """Return the network in float64 with some frozen parameters and some norms in eval mode."""
    for parameter in model.double().parameters():
        parameter.requires_grad_(chance.random() < 0.8)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.train(module.training and chance.random() < 0.8)
    return model, shape


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return a snapshot of a network: its values, objects, modes and hooks, and the random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "numbers": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "tensors": {name: (id(tensor), tensor.requires_grad, tensor.grad) for name, tensor in tensors.items()},
        "modules": {name: (id(each), type(each), each.training) for name, each in model.named_modules()},
        "hooks": [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()],
        "random": torch.random.get_rng_state(),
    }


def unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    same = all(torch.equal(each, after["numbers"][name]) for name, each in before["numbers"].items())
    rest = ("tensors", "modules", "hooks")
    return same and all(before[key] == after[key] for key in rest) and torch.equal(before["random"], after["random"])


def run_operation(operation: Callable[[], Surgery], model: nn.Module) -> Surgery | None:
    """Run an operation; return None if it refuses, with a module's name and a reason. The network must not change."""
    before = snapshot(model)
    try:
        result = operation()
    except SurgeryError as error:
        assert unchanged(before, snapshot(model))
        names = [name for name, _ in model.named_modules() if name] + [type(model).__name__]
        assert any(name in str(error) for name in names), error
        assert "bug" not in str(error), error
        assert len(str(error)) > 40
        return None
    assert unchanged(before, snapshot(model))
    check_names(model, result)
    return result


def check_names(model: nn.Module, result: Surgery) -> None:
    """Check that unchanged modules keep names, values, modes and requires_grad, and new ones are reported."""
    old, new = (dict(net.named_parameters()) | dict(net.named_buffers()) for net in (model, result.model))
    changed = tuple(f"{name}." for name in result.report.changed)
    for name in set(old) & set(new):
        if not name.startswith(changed):
            assert torch.equal(old[name], new[name]), name
        assert old[name].requires_grad is new[name].requires_grad, name
        assert old[name].data_ptr() != new[name].data_ptr(), name
    assert all(name.startswith(changed) for name in set(old) ^ set(new)), (set(old) ^ set(new), changed)
    modes = {name: module.training for name, module in model.named_modules()}
    assert all(modes.get(name, module.training) is module.training for name, module in result.model.named_modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.model.modules())


def same_outputs(model: nn.Module, changed: nn.Module, shape: Shape) -> None:
    """Check for equal logits in eval mode and equal gradients of the image."""
    results = []
    for network in (copy.deepcopy(model).eval(), copy.deepcopy(changed).eval()):
        x = images(3, *shape).requires_grad_()
        logits = network(x)
        results.append((logits, torch.autograd.grad(logits.square().sum(), x)[0]))
    assert results[0][0].std() > 0
    assert close(results[0][0], results[1][0])
    assert close(results[0][1], results[1][1], 1e-7)


def same_training(model: nn.Module, changed: nn.Module, shape: Shape, *, in_order: bool = True) -> None:
    """Check for equal outputs in training mode with the same random numbers, and equal parameter gradients.

    With `in_order=False` the elements of a parameter may be permuted.
    """
    gradients, outputs, statistics = [], [], []
    for each in (copy.deepcopy(model).train(), copy.deepcopy(changed).train()):
        torch.manual_seed(5)
        outputs.append(each.requires_grad_()(images(4, *shape)))
        outputs[-1].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
        statistics.append(dict(each.named_buffers()))
    assert close(*outputs, tolerance=1e-7)
    scale = max(float(each.abs().max()) for each in gradients[0].values())
    for name, gradient in gradients[0].items():
        one, other = gradient.flatten(), gradients[1][name].flatten()
        if not in_order:
            one, other = one.sort().values, other.sort().values
        assert float((one - other).abs().max()) <= 1e-7 * scale, name
    assert all(close(each.double(), statistics[1][name].double(), 1e-7) for name, each in statistics[0].items())


# ---- operations


@examples(20)
def test_fold_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        result = run_operation(lambda: fold(model, shape), model)
        if result is None:
            return "refused"
        same_outputs(model, result.model, shape)
        norms = [sum(isinstance(each, NORMS) for each in net.modules()) for net in (model, result.model)]
        functions = sum(isinstance(each, Functions) for each in model.modules())
        assert norms[1] == len(result.report.details["kept"]) + functions
        assert result.report.after.macs <= result.report.before.macs
        if norms[0] == functions:
            return "none there"
        return "gone" if norms[1] == functions else "some gone" if norms[1] < norms[0] else "none gone"

    answers = on_random_networks(count, check)
    assert answers["refused"] == 0
    assert answers["gone"] + answers["some gone"] >= answers["none gone"]
    assert answers["gone"] > 0.1 * count


@examples(15)
def test_convolutionalize_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        result = run_operation(lambda: convolutionalize(model, shape, latency=False), model)
        if result is None:
            return "refused"
        same_outputs(model, result.model, shape)
        assert not any(isinstance(each, nn.Linear) for each in result.model.modules())
        with torch.no_grad():
            assert result.model.eval().category_maps(images(2, *shape)).shape == (2, 7, 1, 1)
            larger = (shape[0], shape[1] + 24, shape[2] + 24)
            dense = result.model(images(1, *larger))
            assert dense.dim() == 4
            if result.report.details["equal"]:
                rows, columns = result.report.details["step"]
                crop = images(1, *larger)[:, :, rows : rows + shape[1], columns : columns + shape[2]]
                assert close(model.eval()(crop), dense[:, :, 1, 1])
                return "equal on crops"
        return "equal"

    answers = on_random_networks(count, check)
    assert answers["refused"] == 0
    assert answers["equal on crops"] > 0.15 * count


@examples(15)
def test_convolutionalize_preserves_training_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        head = model.get_submodule("head")
        if isinstance(head.layers[0], nn.Dropout) and head.flattened not in POOLS.values():
            return "other random order"
        result = convolutionalize(model, shape, latency=False)
        same_training(model, result.model, shape, in_order=False)
        return "equal"

    assert on_random_networks(count, check, HEADS[:3])["equal"] > 0.5 * count


@examples(15)
def test_pool_head_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        head = model.get_submodule("head")
        linear = not any(isinstance(each, nn.ReLU) for each in head.layers)
        to_one_cell = isinstance(head.flattened, Pooled) and head.flattened.pool.output_size == (1, 1)
        pooled = to_one_cell or head.flattened in POOLS.values()
        result = run_operation(lambda: pool_head(model, shape, latency=False), model)
        if result is None:
            assert not (linear and pooled)
            return "refused"
        assert linear
        same_training(model, result.model, shape)
        for size in (shape, (3, shape[1] + 5, shape[2] + 4))[: 1 + pooled]:
            same_outputs(model, result.model, size)
            with torch.no_grad():
                maps = result.model.eval().category_maps(images(2, *size))
                assert close(model.eval()(images(2, *size)), maps.mean((2, 3)))
                assert maps.shape == (2, 7, *model.get_submodule("trunk")(images(2, *size)).shape[2:])
        return "maps"

    answers = on_random_networks(count, check, ("pool", "pool", "adaptive", "flatten"))
    assert answers["maps"] > 0.1 * count


@examples(15)
def test_deepen_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, chance: random.Random) -> str:
        where = chance.choice([name for name, _ in model.named_modules() if name])
        activation = chance.choice(["auto", "auto", "prelu", "maxout", "identity", "relu"])
        options = {"input_shape": shape, "activation": activation, "norm": chance.random() < 0.3}
        result = run_operation(lambda: deepen(model, where, **options), model)
        if result is None:
            return "refused"
        same_outputs(model, result.model, shape)
        if not options["norm"]:
            same_training(model, result.model, shape)
        new = {name for name in result.model.state_dict() if name not in model.state_dict()}
        assert new
        assert all(name.startswith(where) and "deepened" in name for name in new)
        return "deeper"

    answers = on_random_networks(count, check)
    assert answers["deeper"] > 0.6 * count, answers


@examples(6)
def test_factorize_of_random_networks(count: int) -> None:
    def check(model: nn.Module, shape: Shape, chance: random.Random) -> str:
        data, macs = images(24, *shape), profile(model, shape).totals.macs
        whole = run_operation(lambda: factorize(model, data, macs, curve=False), model)
        assert whole is not None
        same_outputs(model, whole.model, shape)
        share, way = chance.uniform(0.5, 0.95), chance.choice(["activations", "weights"])
        result = run_operation(lambda: factorize(model, data, share, by=way, curve=False), model)
        if result is None:
            return "refused"
        assert profile(result.model, shape).totals.macs <= share * macs
        with torch.no_grad():
            assert result.model.eval()(data).isfinite().all()
        return "cheaper"

    answers = on_random_networks(count, check)
    assert answers["cheaper"] >= 0.5 * count, answers


# ---- profile


@examples(15)
def test_profile_counts_multiply_adds_and_parameters(count: int) -> None:
    """The multiply-adds equal half of the operations that PyTorch's own counter reports."""

    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        totals = profile(model, shape).totals
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).eval().to("meta")(torch.empty((1, *shape), dtype=torch.float64, device="meta"))
        assert counter.get_total_flops() == 2 * totals.macs
        assert totals.params == sum(parameter.numel() for parameter in model.parameters())
        return "counted"

    assert on_random_networks(count, check)["counted"] >= count


@examples(40)
def test_receptive_fields_match_gradients(count: int) -> None:
    """The receptive fields of corner and middle cells are exactly the pixels with a gradient."""

    def check(model: nn.Module, shape: Shape, _: random.Random) -> str:
        trunk = model.get_submodule("trunk")
        field = profile(trunk, shape).field
        assert field is not None
        cells = [(0, 0), (-1, -1), (0, -1), (len(field[0].spans) // 2, len(field[1].spans) // 2)]
        if any(axis.jump is None for axis in field):
            return "no cells"
        size, seen = seen_by(trunk, shape, cells)
        assert size == tuple(len(axis.spans) for axis in field)
        assert [tuple(axis.spans[at] for axis, at in zip(field, cell, strict=True)) for cell in cells] == seen
        for axis in (axis for axis in field if axis.outside is not None):  # a gate sees all from every cell
            inside = [(at, span) for at, span in enumerate(axis.spans) if span[1] - span[0] + 1 == axis.size]
            assert axis.outside == (len(axis.spans) - len(inside)) / len(axis.spans)
            assert all(sum(span) / 2 == axis.start + at * axis.jump for at, span in inside)
        return "seen"

    assert on_random_networks(count, check)["seen"] > 0.9 * count
