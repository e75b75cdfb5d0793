"""Each operation on one network, and what the judge says of the result."""

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
from mlpconv.surgery import report as result
from survey.flow import Flow, record
from survey.judge import Judgement, gap, images_of, judge
from survey.networks import build, calibrated, family, sizes
from survey.rules import Head, dense_share, head_of, multiply_adds, norms_behind_layers, places_to_deepen

__all__ = ["OPERATIONS", "Case", "fitting", "survey", "thinned"]

ROWS = 2
LARGER = (32, 64)
"""Rows and columns by which an image is made larger."""
BUDGET, THIN, MARGIN = 0.5, 8, 1.1
"""Multiply-adds to keep; the part of their rank that layers keep before; how much more torch's counter may see."""
DENSE = 0.75
SECONDS = 200.0
"""Bottlenecks that would decompose matrices for longer are left out."""
IMAGES = 8
LARGE = 30_000_000
"""Parameters from which on a fold of a network without norms, which takes out a dropout at most, is left out."""


@dataclass
class Case:
    """A network to operate on, with what its forward pass was seen to do."""

    model: nn.Module
    shape: tuple[int, int, int]
    flow: Flow
    head: Head

    @cached_property
    def double(self) -> nn.Module:
        """The network in float64."""
        return copy.deepcopy(self.model).double()

    def same(self, changed: nn.Module, precise: nn.Module | None = None, **more: Any) -> Judgement:
        """The judge's word; `precise` is what the operation made of the network in float64, if it rounds weights."""
        precise = copy.deepcopy(changed).double() if precise is None else precise
        return judge({"float32": (self.model, changed), "float64": (self.double, precise)}, self.shape, **more)


def fold(case: Case) -> Judgement:
    """Batch norms folded, in float64, and rounded for float32; some must be, where some stand behind a layer."""
    norms, beside = norms_behind_layers(case.flow)
    if not norms and _size(case.model) > LARGE:
        return Judgement("not run", why="it has no batch norm, and is large")
    made = surgery.fold(case.double, case.shape)
    left = norms_behind_layers(record(made.model, case.flow.image.double()))[0]
    if beside and left == norms:
        reasons = dict(made.report.details["kept"])
        return Judgement("refused", why=f"no batch norm was folded: {next(iter(reasons.values()), 'no reason given')}")
    remark = f"{norms - left} of {norms} batch norms folded" if norms else "no batch norm to fold"
    return case.same(copy.deepcopy(made.model).float(), made.model, remark=remark)


def convolutionalize(case: Case) -> Judgement:
    """The head as convolutions: the map has one cell at this size, and that is the logits."""
    made = surgery.convolutionalize(case.model, case.shape, latency=False)
    found = case.same(made.model, check=_one_cell, remark=_on_larger(case, made.model))
    if found.word == "wrong":  # new weights that were rounded to float32
        precise = surgery.convolutionalize(case.double, case.shape, latency=False).model
        found = case.same(made.model, precise, check=_one_cell, remark=_on_larger(case, made.model))
    return found


def _one_cell(changed: Any, images: Tensor, before: list[Tensor]) -> float:
    with torch.no_grad():
        maps = changed.category_maps(images)
    return gap([_logits(before)], [maps.double().flatten(1)])


def _on_larger(case: Case, changed: Any) -> str:
    """What becomes of a larger image, where the network takes one."""
    shape = (case.shape[0], *(side + more for side, more in zip(case.shape[1:], LARGER, strict=True)))
    try:
        with torch.no_grad():
            maps = changed.category_maps(images_of(shape, torch.float32)[:1])
    except Exception:  # noqa: BLE001  (what the network does with another size is its own affair)
        return "takes no larger image"
    return f"a map of {maps.shape[2]}x{maps.shape[3]} for {shape[1]}x{shape[2]}"


def pool_head(case: Case) -> Judgement:
    """Class maps: their mean is the logits, at this size and at a larger one, where the network takes it."""
    made = surgery.pool_head(case.model, case.shape, latency=False)
    found = case.same(made.model, check=_mean)
    larger = (case.shape[0], *(side + more for side, more in zip(case.shape[1:], LARGER, strict=True)))
    images = images_of(larger, torch.float64)[:1]
    try:
        with torch.no_grad():
            before = case.double(images)
    except Exception:  # noqa: BLE001
        return found
    changed = copy.deepcopy(made.model).double()
    leaves = [before] if isinstance(before, Tensor) else [each for each in before if isinstance(each, Tensor)]
    worst = max(_mean(changed, images, leaves), found.float64 or 0.0)
    if found.word == "exact" and not worst <= max(1e-9, found.float64 or 0.0):
        return Judgement("wrong", found.float32, worst, "maps of a larger image have another mean than its logits")
    return found


def _mean(changed: Any, images: Tensor, before: list[Tensor]) -> float:
    with torch.no_grad():
        maps = changed.category_maps(images)
    return gap([_logits(before)], [maps.double().mean((2, 3))])


def _logits(found: Iterable[Tensor]) -> Tensor:
    return next(each for each in found if each.dim() == ROWS)


def deepen(case: Case) -> Judgement:
    """One more 1x1 behind each of the places that the rule names."""
    places = places_to_deepen(case.model, case.flow.image)
    if not places:
        return Judgement("refused", why="the rule of this survey names no place")
    changed = surgery.deepen(case.model, places, input_shape=case.shape).model
    if _size(changed) <= _size(case.model):
        return Judgement("wrong", why="nothing was added")
    return case.same(changed, remark=f"behind {' and '.join(places)}")


def _size(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def factorize(case: Case) -> Judgement:
    """Layers that have an eighth of their rank come back the same, with half of the multiply-adds."""
    if dense_share(case.model, case.flow.image) < DENSE:
        return Judgement("not run", why="its layers do a small part of the work: half of it may be out of reach")
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
    """Convolutions without groups and linear layers."""
    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    return [each for each in layers if isinstance(each, nn.Linear) or each.groups == 1]


def _decomposing(model: nn.Module) -> float:
    """About how many seconds the eigenvectors of all layers take on one core."""
    shapes = [layer.weight.shape for layer in _plain(model)]
    sides = [side for shape in shapes for side in shape[: 1 if math.prod(shape[2:]) == 1 else 2]]
    return sum((side / 1024) ** 3 for side in sides) * 0.27


@torch.no_grad()
def thinned(model: nn.Module, seed: int = 1) -> nn.Module:
    """In place: layers with a random weight of an eighth of the rank, and as large as before."""
    source = torch.Generator().manual_seed(seed)
    for layer in _plain(model):
        weight = layer.weight.flatten(1)
        rank = max(1, min(layer.weight.shape[:2]) // THIN)
        up = torch.randn((len(weight), rank), generator=source, dtype=torch.float64)
        down = torch.randn((rank, weight.shape[1]), generator=source, dtype=torch.float64)
        made = (up @ down).to(weight)
        layer.weight.copy_((made * (weight.norm() / made.norm())).reshape(layer.weight.shape))
    return model


OPERATIONS: dict[str, Callable[[Case], Judgement]] = {
    each.__name__: each for each in (fold, convolutionalize, pool_head, deepen, factorize)
}


def attempt(operation: Callable[[Case], Judgement], case: Case) -> dict[str, Any]:
    """The judgement of one pair, with the seconds that it took."""
    began = time.process_time()
    try:
        found = operation(case)
    except MlpconvError as error:
        found = Judgement("refused", why=str(error))
    except Exception as error:  # noqa: BLE001  (a crash is a result, and the worst but one)
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        found = Judgement("crashed", why=f"{type(error).__name__}: {text} ({last.name}, line {last.lineno})")
    return found.to_dict() | {"cpu_s": round(time.process_time() - began, 1)}


def fitting(model: nn.Module, native: tuple[int, int, int]) -> Case:
    """The network at the smallest size at which it works, and its last maps have more than one cell."""
    found: Case | None = None
    for shape in sizes(native):
        try:
            flow = record(model, images_of(shape, torch.float32)[:1])
        except Exception:  # noqa: BLE001  (it does not take this size)
            continue
        found = Case(model, shape, flow, head_of(flow))
        if not found.head.on_maps or min(found.head.cells) > 1:
            return found
    if found is None:
        raise SystemExit(f"{type(model).__name__} takes none of the sizes up to {native}")
    return found


def survey(name: str, operations: Iterable[str] = tuple(OPERATIONS), largest: float = math.inf) -> dict[str, Any]:
    """All that is found of one network; of one with more parameters than `largest` that it is so large."""
    model, native = build(name, largest)
    if _size(model) > largest:
        return {"family": family(model), "not run": f"{_size(model):,} parameters, the same code as smaller ones here"}
    case = fitting(model, native)
    calibrated(model, images_of(case.shape, torch.float32))
    _shorten_reports(case)
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
        "operations": {each: attempt(OPERATIONS[each], case) for each in operations},
    }


def _shorten_reports(case: Case) -> None:
    """Reports without a stopwatch, and with one look at the original for all of them: most of the time."""
    look, known = result.measure_figures, {}

    def figures(model: nn.Module, shape: tuple[int, int, int], **more: Any) -> result.Figures:
        if model is not case.model and model is not vars(case).get("double"):
            return look(model, shape, **more)
        key = (id(model), shape)
        return known[key] if key in known else known.setdefault(key, look(model, shape, **more))

    result.measure_latency, result.measure_figures = (lambda *_: math.nan), figures


def _profiled(case: Case) -> dict[str, Any]:
    """Whether `profile` follows the network, and its multiply-adds beside those of torch's own counter."""
    try:
        found = profile(case.model, case.shape)
    except MlpconvError as error:
        return {"why": str(error)}
    return {
        "macs": found.totals.macs,
        "torch": multiply_adds(case.model, case.flow.image),
        "parameters": found.totals.params == _size(case.model),
        "field": found.field is not None,
    }
