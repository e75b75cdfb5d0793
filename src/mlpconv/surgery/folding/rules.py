"""What may be folded into what: the rules, on a network's graph, one change at a time until none applies."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, fx, nn

from mlpconv.errors import MlpconvError, UsageError
from mlpconv.models.dropout import Dropout
from mlpconv.models.folding import BatchNorm, norm_scale_and_shift
from mlpconv.surgery.folding.linear_maps import (
    CONVS,
    LAYERS,
    TRANSPOSED,
    is_plain,
    is_pointwise,
    merge_linear,
    pads_zeros,
    scale_input,
    scale_output,
)
from mlpconv.surgery.proof.accept import is_parametrized, shared_names
from mlpconv.surgery.tracing.graph import calls_of, module_of, open_all, replace_module, shape_of, trace

__all__ = ["DROPPED", "Folding"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPPED_ELSEWHERE = ("StochasticDepth", "DropPath", "DropBlock2d")
"""Modules of torchvision and timm that do nothing in eval mode."""
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
CLOSE = 1e-9


def does_nothing(module: nn.Module) -> bool:
    """Whether a module hands on what it is given, in eval mode."""
    return type(module) in (Dropout, *DROPPED) or type(module).__name__ in DROPPED_ELSEWHERE


def opens(name: str, module: nn.Module) -> bool:
    """Look into every module but those that the rules know, or that derive from one they know."""
    known = isinstance(module, (*LAYERS, nn.modules.batchnorm._BatchNorm)) or does_nothing(module)
    return not known and open_all(name, module)


class Refused(Exception):
    """Why two steps stay two."""


class Folding:
    """One network while it is folded; the network itself is only read."""

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, int, int], untouchable: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`untouchable` names modules that stay, with the reason."""
        self.root = trace(model, input_shape, opens=opens, training=False)
        self.graph = self.root.graph
        self.changes: OrderedDict[str, nn.Module] = OrderedDict()
        """What takes the place of the module of each name."""
        self.kept: dict[str, str] = {}
        """Each norm that stays, and why."""
        self.untouchable = {**_read_apart(self.graph), **untouchable}
        self.single = {
            str(nodes[0].target)
            for module, nodes in calls_of(self.graph, self.root).items()
            if len(nodes) == 1 and not shared_names(self.root, module)
        }

    def run(self) -> None:
        """Apply every rule wherever it holds."""
        for node in list(self.graph.find_nodes(op="call_module")):
            if does_nothing(self.module(node)) and node.target not in self.untouchable:
                self._remove(node)
        for node in self._norms():
            self._try(node, self._norm_into_before)
        for node in self._norms():
            self._try(node, self._norm_into_after)
        for node in list(self.graph.find_nodes(op="call_module")):
            # A layer may swallow the next one, and the one after that.
            while self._merge(node):
                pass

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return cast("nn.Module", module_of(node, self.root))

    def _norms(self) -> list[fx.Node]:
        nodes = self.graph.find_nodes(op="call_module")
        return [node for node in nodes if isinstance(self.module(node), nn.modules.batchnorm._BatchNorm)]

    def _try(self, node: fx.Node, rule: object) -> None:
        try:
            rule(node)  # type: ignore[operator]
        except Refused as refusal:
            reason, before = str(refusal), self.kept.get(str(node.target), "")
            self.kept[str(node.target)] = "; ".join(dict.fromkeys(filter(None, (before, reason))))
        else:
            self.kept.pop(str(node.target), None)

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        replace_module(self.root, str(node.target), module)
        self.changes[str(node.target)] = module

    def _remove(self, node: fx.Node) -> None:
        """Hand on what the node is given, in its place."""
        self.changes[str(node.target)] = nn.Identity()
        node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.erase_node(node)

    def _own(self, node: fx.Node) -> nn.Module:
        """The module of a node, which must be called once, share nothing and be read nowhere else; else Refused."""
        module, name = self.module(node), str(node.target)
        if name not in self.single:
            raise Refused(f"{name} is used more than once, or shares its weights")
        if is_parametrized(module):
            raise Refused(f"the weights of {name} are worked out from others")
        if name in self.untouchable:
            raise Refused(self.untouchable[name])
        return module

    def _norm_into_before(self, node: fx.Node) -> None:
        norm = self._own(node)
        source, pools = node.all_input_nodes[0], []
        while source.op == "call_module" and isinstance(self.module(source), (*AVERAGES, *ADAPTIVE_AVERAGES, *MAXIMA)):
            pools.append(source)
            source = source.all_input_nodes[0]
        if source.op != "call_module" or not isinstance(self.module(source), LAYERS):
            raise Refused(f"no convolution or linear layer comes before it ({self._called(source)} does)")
        for between in (source, *pools):
            if len(between.users) > 1:
                raise Refused(f"what {between.target} makes goes elsewhere, too")
        layer = self._own(source)
        if isinstance(layer, nn.Linear) and len(shape_of(source) or ()) != 2:
            raise Refused(f"it normalises along another axis than {source.target} makes")
        scale, shift = _numbers(norm, node)
        for pool in pools:
            _check_pool(self.module(pool), str(pool.target), scale, shift)
        rest = self._rest(node)
        self._replace(source, self._checked(source, layer, scale_output(layer, scale, shift), scale, shift))
        self._leave(node, rest)

    def _norm_into_after(self, node: fx.Node) -> None:
        norm = self._own(node)
        users = list(node.users)
        layers = []
        for user in users:
            after = module_of(user, self.root)
            if not isinstance(after, (*CONVS, nn.Linear)) or type(after) not in LAYERS:
                raise Refused(f"no plain convolution or linear layer comes after it ({self._called(user)} does)")
            layers.append(self._own(user))
        source = node.all_input_nodes[0]
        if len(source.users) > 1:
            called = source.target if source.op == "call_module" else self._called(source)
            raise Refused(f"what {called} makes goes elsewhere, too")
        scale, shift = _numbers(norm, node)
        for user, layer in zip(users, layers, strict=True):
            if isinstance(layer, nn.Linear) and len(shape_of(node) or ()) != 2:
                raise Refused(f"it normalises along another axis than {user.target} reads")
            if pads_zeros(layer) and bool(shift.any()):
                raise Refused(f"{user.target} pads with zeros what it shifts")
        if not isinstance(self._rest(node), nn.Identity):
            raise Refused("it does more than normalise")
        for user, layer in zip(users, layers, strict=True):
            self._replace(user, scale_input(layer, scale, shift))
        self._leave(node, nn.Identity())

    def _leave(self, node: fx.Node, rest: nn.Module) -> None:
        """In the place of a norm, what it did beside."""
        if isinstance(rest, nn.Identity):
            self._remove(node)
        else:
            self._replace(node, rest)

    def _rest(self, node: fx.Node) -> nn.Module:
        """What a norm does after normalising: nothing, or for a norm with an activation of its own that."""
        norm = self.module(node)
        if type(norm) in NORMS:
            return nn.Identity()
        try:
            inner = trace(norm, cast("tuple[int, int, int]", (shape_of(node) or ())[1:]), training=False)
        except MlpconvError as error:
            raise Refused(f"it is a {type(norm).__name__}, whose forward cannot be followed") from error
        steps = [each for each in inner.graph.nodes if each.op.startswith("call_") and shape_of(each) is not None]
        functions = [each for each in steps if each.op != "call_module"]
        if [each.target for each in functions] != [nn.functional.batch_norm] or steps[0] is not functions[0]:
            raise Refused(f"it is a {type(norm).__name__}, which does more than normalise")
        after = {str(each.target): inner.get_submodule(str(each.target)) for each in steps[1:]}
        after = {name: module for name, module in after.items() if not does_nothing(module)}
        chained = all(len(each.all_input_nodes) == 1 and len(each.users) == 1 for each in steps[1:])
        if not chained or any("." in name for name in after):
            raise Refused(f"it is a {type(norm).__name__}, which does more than normalise and activate")
        return nn.Sequential(OrderedDict(after)) if after else nn.Identity()

    def _checked(self, node: fx.Node, old: nn.Module, new: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
        """The new layer; of a class that we do not know it must be shown to be the old one scaled; else Refused."""
        if type(old) in LAYERS:
            return new
        image = torch.randn(shape_of(node.all_input_nodes[0]) or (), generator=torch.Generator().manual_seed(0))
        one, other = (_precise(layer, image) for layer in (old, new))
        wanted = one * scale.cpu().reshape(-1, *[1] * (one.dim() - 2)) + shift.cpu().reshape(-1, *[1] * (one.dim() - 2))
        if not bool((other - wanted).abs().max() <= CLOSE * wanted.abs().max()):
            raise Refused(f"{node.target} is a {type(old).__name__}, whose weight does not scale what it makes")
        return new

    def _merge(self, node: fx.Node) -> bool:
        """Make one layer of this one and the next, where that is exact and costs no more; whether it was done."""
        if node._erased or len(node.users) != 1:
            return False
        after = next(iter(node.users))
        first, second = self.module(node), module_of(after, self.root)
        if not _mergeable(first, second) or after.all_input_nodes != [node]:
            return False
        try:
            made = merge_linear(self._own(node), self._own(after))
        except Refused:
            return False
        places = math.prod(_places(after))
        apart = _weights(first) * math.prod(_places(node)) + _weights(cast("nn.Module", second)) * places
        if _weights(made) * places > apart:
            return False
        self._replace(node, made)
        node.meta["val"] = after.meta["val"]
        self._remove(after)
        return True

    def _called(self, node: fx.Node) -> str:
        """A step in words."""
        if node.op in ("placeholder", "output"):
            return "the image itself" if node.op == "placeholder" else "the end"
        module = module_of(node, self.root)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "a function")
        return f"{name} ({type(module).__name__})" if module is not None else str(name)


def _read_apart(graph: fx.Graph) -> dict[str, str]:
    """The modules of which the forward pass reads a parameter or buffer by itself, beside calling them, and which."""
    read: dict[str, str] = {}
    for node in graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        read.setdefault(owner, f"the forward pass also uses {owner}.{name} by itself")
    return read


def _numbers(norm: nn.Module, node: fx.Node) -> tuple[Tensor, Tensor]:
    try:
        return norm_scale_and_shift(cast("BatchNorm", norm), str(node.target))
    except UsageError as error:
        raise Refused(str(error)) from error


def _check_pool(pool: nn.Module, name: str, scale: Tensor, shift: Tensor) -> None:
    """Refused where scaling and shifting before this pool is not the same as after it."""
    if isinstance(pool, MAXIMA) and bool((scale < 0).any()):
        count = int((scale < 0).sum())
        raise Refused(f"{count} of its weights are negative, and {name} between takes a maximum")
    if isinstance(pool, AVERAGES) and bool(shift.any()):
        padded = (isinstance(pool.padding, int) and pool.padding) or pool.padding not in (0, (0,), (0, 0), (0, 0, 0))
        if (padded and pool.count_include_pad) or getattr(pool, "divisor_override", None) is not None:
            raise Refused(f"{name} between averages zeros of its padding with what is shifted")


def _mergeable(first: nn.Module, second: nn.Module | None) -> bool:
    """Whether the two, one after the other, are exactly one layer of the kind."""
    if type(first) is not type(second) or type(first) not in LAYERS or isinstance(first, TRANSPOSED):
        return False
    if isinstance(first, nn.Linear):
        return True
    one, two = cast("nn.Conv2d", first), cast("nn.Conv2d", second)
    if one.groups > 1 or two.groups > 1:
        return False
    if is_pointwise(two):
        return one.padding != "same" or not any(step > 1 for step in two.stride)
    # The second sees the first's bias only inside the image, and zeros around it.
    return is_pointwise(one) and all(step == 1 for step in one.stride) and (is_plain(one) or not pads_zeros(two))


def _places(node: fx.Node) -> tuple[int, ...]:
    """The pixels, or positions, at which a layer works."""
    shape = shape_of(node) or ()
    return shape[2:] if len(shape) > 3 else shape[1:-1]


def _weights(layer: nn.Module) -> int:
    return cast("Tensor", layer.weight).numel()


@torch.no_grad()
def _precise(layer: nn.Module, image: Tensor) -> Tensor:
    """What the layer makes of the image, in float64 on the CPU."""
    return cast("Tensor", copy.deepcopy(layer).cpu().double().eval()(image.double()))
