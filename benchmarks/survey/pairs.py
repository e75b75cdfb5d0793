"""Run each operation on one network and compare the result with the original."""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv import surgery
from mlpconv.analysis import profile
from mlpconv.errors import MlpconvError
from survey.flow import Flow, record
from survey.judge import Judgement, gap, images_of, judge
from survey.networks import build, calibrated, family, sizes
from survey.rules import Head, dense_share, head_of, multiply_adds, norms_behind_layers, places_to_deepen

__all__ = ["OPERATIONS", "Case", "fitting", "survey", "thinned"]

ROWS = 2
LARGER = (32, 64)
"""Pixels that are added to the rows and columns of a larger image."""
BUDGET, THIN, MARGIN = 0.5, 8, 1.1
"""Share of multiply-adds to keep; divisor of the layers' rank; tolerance of torch's counter on the budget."""
DENSE = 0.75
SECONDS = 200.0
"""Networks whose decompositions would take longer are not factorized."""
IMAGES = 8
LARGE = 30_000_000
"""Networks with more parameters and without norms are not folded: fold removes a dropout there at most."""


@dataclass
class Case:
    """A network with its recorded forward pass."""

    model: nn.Module
    shape: tuple[int, int, int]
    flow: Flow
    head: Head

    @cached_property
    def double(self) -> nn.Module:
        """A copy of the network in float64."""
        return copy.deepcopy(self.model).double()

    def same(self, changed: nn.Module, precise: nn.Module | None = None, **options: Any) -> Judgement:
        """Compare with a changed network; `precise` is the operation's result in float64 if it rounds weights."""
        precise = copy.deepcopy(changed).double() if precise is None else precise
        return judge({"float32": (self.model, changed), "float64": (self.double, precise)}, self.shape, **options)

    @property
    def larger(self) -> tuple[int, int, int]:
        """The shape of a larger image."""
        channels, height, width = self.shape
        return channels, height + LARGER[0], width + LARGER[1]


def fold(case: Case) -> Judgement:
    """Fold batch norms in float64 and round for float32; require a folded norm if one follows a layer."""
    norms, beside = norms_behind_layers(case.flow)
    if not norms and _size(case.model) > LARGE:
        return Judgement("not run", why="it has no batch norm, and is large")
    result = surgery.fold(case.double, case.shape)
    left = norms_behind_layers(record(result.model, case.flow.image.double()))[0]
    if beside and left == norms:
        reasons = dict(result.report.details["kept"])
        return Judgement("refused", why=f"no batch norm was folded: {next(iter(reasons.values()), 'no reason given')}")
    remark = f"{norms - left} of {norms} batch norms folded" if norms else "no batch norm to fold"
    return case.same(copy.deepcopy(result.model).float(), result.model, remark=remark)


def convolutionalize(case: Case) -> Judgement:
    """Convolutionalize the head; the map must have one cell at this size, equal to the logits."""
    changed = surgery.convolutionalize(case.model, case.shape, latency=False).model
    judgement = case.same(changed, check=_one_cell, remark=_on_larger(case, changed))
    if judgement.word == "wrong":  # possibly only because new weights were rounded to float32
        precise = surgery.convolutionalize(case.double, case.shape, latency=False).model
        judgement = case.same(changed, precise, check=_one_cell, remark=_on_larger(case, changed))
    return judgement


def _one_cell(changed: Any, images: Tensor, before: list[Tensor]) -> float:
    with torch.no_grad():
        maps = changed.category_maps(images)
    return gap([_logits(before)], [maps.double().flatten(1)])


def _on_larger(case: Case, changed: Any) -> str:
    """Describe the map of a larger image."""
    try:
        with torch.no_grad():
            maps = changed.category_maps(images_of(case.larger, torch.float32)[:1])
    except Exception:  # noqa: BLE001  (the network may reject other sizes)
        return "takes no larger image"
    return f"a map of {maps.shape[2]}x{maps.shape[3]} for {case.larger[1]}x{case.larger[2]}"


def pool_head(case: Case) -> Judgement:
    """Compare the mean of the class activation maps with the logits, at this size and at a larger one."""
    changed = surgery.pool_head(case.model, case.shape, latency=False).model
    judgement = case.same(changed, check=_mean)
    images = images_of(case.larger, torch.float64)[:1]
    try:
        with torch.no_grad():
            outputs = case.double(images)
    except Exception:  # noqa: BLE001  (the network may reject other sizes)
        return judgement
    leaves = [outputs] if isinstance(outputs, Tensor) else [leaf for leaf in outputs if isinstance(leaf, Tensor)]
    worst = max(_mean(copy.deepcopy(changed).double(), images, leaves), judgement.float64 or 0.0)
    if judgement.word == "exact" and not worst <= max(1e-9, judgement.float64 or 0.0):
        return Judgement("wrong", judgement.float32, worst, "the mean of a larger image's maps is not its logits")
    return judgement


def _mean(changed: Any, images: Tensor, before: list[Tensor]) -> float:
    with torch.no_grad():
        maps = changed.category_maps(images)
    return gap([_logits(before)], [maps.double().mean((2, 3))])


def _logits(outputs: Iterable[Tensor]) -> Tensor:
    return next(tensor for tensor in outputs if tensor.dim() == ROWS)


def deepen(case: Case) -> Judgement:
    """Insert a 1x1 after each place that the rule selects."""
    places = places_to_deepen(case.model, case.flow.image)
    if not places:
        return Judgement("refused", why="the survey's rule finds no place")
    changed = surgery.deepen(case.model, places, input_shape=case.shape).model
    if _size(changed) <= _size(case.model):
        return Judgement("wrong", why="nothing was added")
    return case.same(changed, remark=f"after {' and '.join(places)}")


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def factorize(case: Case) -> Judgement:
    """Factorize a network whose layers have an eighth of their rank, to half of the multiply-adds, without loss."""
    if dense_share(case.model, case.flow.image) < DENSE:
        return Judgement("not run", why="its layers have a small share of the multiply-adds: half may be out of reach")
    seconds = _decomposing(case.model)
    if seconds > SECONDS:
        return Judgement("not run", why="decomposing its layers takes long")
    model = thinned(copy.deepcopy(case.model).double())
    images = images_of(case.shape, torch.float64)
    data = torch.cat([images] * math.ceil(IMAGES / len(images)))
    changed = surgery.factorize(model, data, BUDGET, by="weights", curve=False).model
    share = multiply_adds(changed, images[:1]) / max(1, multiply_adds(model, images[:1]))
    if share > BUDGET * MARGIN:
        return Judgement("wrong", why=f"{share:.0%} of the multiply-adds are left, not {BUDGET:.0%}")
    single = (copy.deepcopy(model).float(), copy.deepcopy(changed).float())
    remark = f"{share:.0%} of the multiply-adds"
    return judge({"float32": single, "float64": (model, changed)}, case.shape, remark)


def _plain(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return convolutions without groups and linear layers."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [layer for layer in layers if isinstance(layer, nn.Linear) or layer.groups == 1]


def _decomposing(model: nn.Module) -> float:
    """Estimate the seconds that the eigendecompositions of all layers take on one core."""
    shapes = [layer.weight.shape for layer in _plain(model)]
    sides = [side for shape in shapes for side in shape[: 1 if math.prod(shape[2:]) == 1 else 2]]
    return sum((side / 1024) ** 3 for side in sides) * 0.27


@torch.no_grad()
def thinned(model: nn.Module, seed: int = 1) -> nn.Module:
    """Replace weights in place by random ones with an eighth of the rank and the same norm."""
    source = torch.Generator().manual_seed(seed)
    for layer in _plain(model):
        weight = layer.weight.flatten(1)
        rank = max(1, min(layer.weight.shape[:2]) // THIN)
        up = torch.randn((len(weight), rank), generator=source, dtype=torch.float64)
        down = torch.randn((rank, weight.shape[1]), generator=source, dtype=torch.float64)
        product = (up @ down).to(weight)
        layer.weight.copy_((product * (weight.norm() / product.norm())).reshape(layer.weight.shape))
    return model


OPERATIONS: dict[str, Callable[[Case], Judgement]] = {
    operation.__name__: operation for operation in (fold, convolutionalize, pool_head, deepen, factorize)
}


def attempt(operation: Callable[[Case], Judgement], case: Case) -> dict[str, Any]:
    """Return the judgement of one operation on one network, with its CPU seconds."""
    start = time.process_time()
    try:
        judgement = operation(case)
    except MlpconvError as error:
        judgement = Judgement("refused", why=str(error))
    except Exception as error:  # noqa: BLE001  (a crash is recorded as a result)
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        judgement = Judgement("crashed", why=f"{type(error).__name__}: {text} ({last.name}, line {last.lineno})")
    return judgement.to_dict() | {"cpu_s": round(time.process_time() - start, 1)}


def fitting(model: nn.Module, native: tuple[int, int, int]) -> Case:
    """Return the network at the smallest size that it accepts and whose last maps have more than one cell."""
    case: Case | None = None
    for shape in sizes(native):
        try:
            flow = record(model, images_of(shape, torch.float32)[:1])
        except Exception:  # noqa: BLE001  (the network does not accept this size)
            continue
        case = Case(model, shape, flow, head_of(flow))
        if not case.head.on_maps or min(case.head.cells) > 1:
            return case
    if case is None:
        raise SystemExit(f"{type(model).__name__} accepts none of the sizes up to {native}")
    return case


def survey(name: str, operations: Iterable[str] = tuple(OPERATIONS), largest: float = math.inf) -> dict[str, Any]:
    """Return all results of one network; a network with more than `largest` parameters is not run."""
    model, native = build(name, largest)
    if _size(model) > largest:
        return {"family": family(model), "not run": f"{_size(model):,} parameters, the same code as smaller ones here"}
    case = fitting(model, native)
    calibrated(model, images_of(case.shape, torch.float32))
    norms, beside = norms_behind_layers(case.flow)
    sense = {
        "fold": beside > 0,
        "convolutionalize": case.head.on_maps,
        "pool_head": case.head.averaged,
        "deepen": bool(places_to_deepen(model, case.flow.image)),
        "factorize": dense_share(model, case.flow.image) >= DENSE,
    }
    return {
        "family": family(model),
        "class": type(model).__name__,
        "parameters": _size(model),
        "shape": list(case.shape),
        "head": {"begins": case.head.begins, "how": case.head.how, "steps": list(case.head.steps)},
        "norms": [norms, beside],
        "sense": sense,
        "profile": _profiled(case),
        "operations": {name: attempt(OPERATIONS[name], case) for name in operations},
    }


def _profiled(case: Case) -> dict[str, Any]:
    """Profile the network, with the multiply-adds of torch's FlopCounterMode for comparison."""
    try:
        result = profile(case.model, case.shape)
    except MlpconvError as error:
        return {"why": str(error)}
    return {
        "macs": result.totals.macs,
        "torch": multiply_adds(case.model, case.flow.image),
        "parameters": result.totals.params == _size(case.model),
        "field": result.field is not None,
    }
