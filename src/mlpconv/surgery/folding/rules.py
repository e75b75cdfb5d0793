"""Rules that fold batch norms and merge linear layers on a network's graph, applied until none holds."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
from mlpconv.surgery.tracing.accept import is_parametrized, shared_names
from mlpconv.surgery.tracing.graph import calls_of, module_of, open_all, replace_module, shape_of, trace

__all__ = ["DROPPED", "Folding"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPPED_ELSEWHERE = ("StochasticDepth", "DropPath", "DropBlock2d")
"""Modules of torchvision and timm that are the identity in eval mode."""
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
CLOSE = 1e-9
"""Largest relative difference between a scaled layer and the layer times the scale."""


def is_identity(module: nn.Module) -> bool:
    """Return whether a module returns its input in eval mode."""
    return type(module) in (Dropout, *DROPPED) or type(module).__name__ in DROPPED_ELSEWHERE


def opens(name: str, module: nn.Module) -> bool:
    """Return whether to trace inside a module: not if the rules handle it or a base class of it."""
    known = isinstance(module, (*LAYERS, nn.modules.batchnorm._BatchNorm)) or is_identity(module)
    return not known and open_all(name, module)


class Refused(Exception):
    """The reason why a rule does not apply."""


class Folding:
    """Fold the modules of one network; `changes` collects the replacements, and the network itself is not changed."""

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, int, int], untouchable: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Trace the network for images of `input_shape`; `untouchable` maps modules that must stay to the reason."""
        self.root = trace(model, input_shape, opens=opens, training=False)
        self.graph = self.root.graph
        self.changes: OrderedDict[str, nn.Module] = OrderedDict()
        """The replacement of each changed module, by name."""
        self.kept: dict[str, str] = {}
        """The reason why each remaining norm stays, by name."""
        self.untouchable = {**_read_directly(self.graph), **untouchable}
        self.single = {
            str(nodes[0].target)
            for module, nodes in calls_of(self.graph, self.root).items()
            if len(nodes) == 1 and not shared_names(self.root, module)
        }

    def run(self) -> None:
        """Apply every rule wherever it holds."""
        for node in list(self.graph.find_nodes(op="call_module")):
            if is_identity(self.module(node)) and node.target not in self.untouchable:
                self._remove(node)
        for node in self._norms():
            self._try(node, self._fold_backward)
        for node in self._norms():
            self._try(node, self._fold_forward)
        for node in list(self.graph.find_nodes(op="call_module")):
            # A layer may absorb the next one, and the one after that.
            while self._merge(node):
                pass

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return cast("nn.Module", module_of(node, self.root))

    def _norms(self) -> list[fx.Node]:
        nodes = self.graph.find_nodes(op="call_module")
        return [node for node in nodes if isinstance(self.module(node), nn.modules.batchnorm._BatchNorm)]

    def _try(self, node: fx.Node, rule: Callable[[fx.Node], None]) -> None:
        try:
            rule(node)
        except Refused as refusal:
            reasons = [self.kept.get(str(node.target)), str(refusal)]
            self.kept[str(node.target)] = "; ".join(dict.fromkeys(filter(None, reasons)))
        else:
            self.kept.pop(str(node.target), None)

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        replace_module(self.root, str(node.target), module)
        self.changes[str(node.target)] = module

    def _remove(self, node: fx.Node) -> None:
        """Replace a node by its input."""
        self.changes[str(node.target)] = nn.Identity()
        node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.erase_node(node)

    def _changeable(self, node: fx.Node) -> nn.Module:
        """Return the module of a node; Refused unless it is called once, shares no weights and is read nowhere else."""
        module, name = self.module(node), str(node.target)
        if name not in self.single:
            raise Refused(f"{name} is used more than once, or shares its weights")
        if is_parametrized(module):
            raise Refused(f"the weights of {name} are parametrized")
        if name in self.untouchable:
            raise Refused(self.untouchable[name])
        return module

    def _fold_backward(self, node: fx.Node) -> None:
        """Fold a norm into the layer before it."""
        norm = self._changeable(node)
        source, pools = node.all_input_nodes[0], []
        while source.op == "call_module" and isinstance(self.module(source), (*AVERAGES, *ADAPTIVE_AVERAGES, *MAXIMA)):
            pools.append(source)
            source = source.all_input_nodes[0]
        if source.op != "call_module" or not isinstance(self.module(source), LAYERS):
            raise Refused(f"it follows {self._describe(source)}, which is not a convolution or linear layer")
        for step in (source, *pools):
            if len(step.users) > 1:
                raise Refused(f"the output of {step.target} has other consumers")
        layer = self._changeable(source)
        if isinstance(layer, nn.Linear) and len(shape_of(source) or ()) != 2:
            raise Refused(f"it normalises another axis than the output channels of {source.target}")
        scale, shift = _scale_and_shift(norm, node)
        for pool in pools:
            _check_pool(self.module(pool), str(pool.target), scale, shift)
        activation = self._activation(node)
        self._replace(source, self._check_scaled(source, layer, scale_output(layer, scale, shift), scale, shift))
        if isinstance(activation, nn.Identity):
            self._remove(node)
        else:
            self._replace(node, activation)

    def _fold_forward(self, node: fx.Node) -> None:
        """Fold a norm into the layers after it."""
        norm = self._changeable(node)
        users = list(node.users)
        layers = []
        for user in users:
            layer = module_of(user, self.root)
            if not isinstance(layer, (*CONVS, nn.Linear)) or type(layer) not in LAYERS:
                raise Refused(f"it precedes {self._describe(user)}, which is not a plain convolution or linear layer")
            layers.append(self._changeable(user))
        source = node.all_input_nodes[0]
        if len(source.users) > 1:
            name = source.target if source.op == "call_module" else self._describe(source)
            raise Refused(f"the output of {name} has other consumers")
        scale, shift = _scale_and_shift(norm, node)
        for user, layer in zip(users, layers, strict=True):
            if isinstance(layer, nn.Linear) and len(shape_of(node) or ()) != 2:
                raise Refused(f"it normalises another axis than the input channels of {user.target}")
            if pads_zeros(layer) and bool(shift.any()):
                raise Refused(f"{user.target} pads its input with zeros, which the shift of the norm would change")
        if not isinstance(self._activation(node), nn.Identity):
            raise Refused("it does more than normalise")
        for user, layer in zip(users, layers, strict=True):
            self._replace(user, scale_input(layer, scale, shift))
        self._remove(node)

    def _activation(self, node: fx.Node) -> nn.Module:
        """Return the activation that a norm applies after normalising (timm's norms have one), or an Identity."""
        norm = self.module(node)
        if type(norm) in NORMS:
            return nn.Identity()
        try:
            inner = trace(norm, cast("tuple[int, int, int]", (shape_of(node) or ())[1:]), training=False)
        except MlpconvError as error:
            raise Refused(f"it is a {type(norm).__name__}, whose forward pass cannot be traced") from error
        steps = [step for step in inner.graph.nodes if step.op.startswith("call_") and shape_of(step) is not None]
        functions = [step for step in steps if step.op != "call_module"]
        if [step.target for step in functions] != [nn.functional.batch_norm] or steps[0] is not functions[0]:
            raise Refused(f"it is a {type(norm).__name__}, which does more than normalise")
        modules = {str(step.target): inner.get_submodule(str(step.target)) for step in steps[1:]}
        activations = {name: module for name, module in modules.items() if not is_identity(module)}
        chained = all(len(step.all_input_nodes) == 1 and len(step.users) == 1 for step in steps[1:])
        if not chained or any("." in name for name in activations):
            raise Refused(f"it is a {type(norm).__name__}, which does more than normalise and activate")
        return nn.Sequential(OrderedDict(activations)) if activations else nn.Identity()

    def _check_scaled(self, node: fx.Node, old: nn.Module, new: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
        """Return the new layer; Refused if `old` is of a subclass and `new` does not compute its scaled output."""
        if type(old) in LAYERS:
            return new
        image = torch.randn(shape_of(node.all_input_nodes[0]) or (), generator=torch.Generator().manual_seed(0))
        output, scaled = (_in_float64(layer, image) for layer in (old, new))
        per_channel = (-1, *[1] * (output.dim() - 2))
        expected = output * scale.cpu().reshape(per_channel) + shift.cpu().reshape(per_channel)
        if not bool((scaled - expected).abs().max() <= CLOSE * expected.abs().max()):
            raise Refused(f"{node.target} is a {type(old).__name__}, whose output does not scale with its weight")
        return new

    def _merge(self, node: fx.Node) -> bool:
        """Merge a layer with the next if that is exact and needs no more multiply-adds; return whether it did."""
        if node._erased or len(node.users) != 1:
            return False
        user = next(iter(node.users))
        first, second = self.module(node), module_of(user, self.root)
        if not _mergeable(first, second) or user.all_input_nodes != [node]:
            return False
        try:
            merged = merge_linear(self._changeable(node), self._changeable(user))
        except Refused:
            return False
        positions = math.prod(_positions(user))
        separate = _weights(first) * math.prod(_positions(node)) + _weights(cast("nn.Module", second)) * positions
        if _weights(merged) * positions > separate:
            return False
        self._replace(node, merged)
        node.meta["val"] = user.meta["val"]
        self._remove(user)
        return True

    def _describe(self, node: fx.Node) -> str:
        """Name a step for a message."""
        if node.op in ("placeholder", "output"):
            return "the image" if node.op == "placeholder" else "the output of the network"
        module = module_of(node, self.root)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "a function")
        return f"{name} ({type(module).__name__})" if module is not None else str(name)


def _read_directly(graph: fx.Graph) -> dict[str, str]:
    """Return the modules whose parameters or buffers the forward pass reads directly, each with the reason to keep."""
    reasons: dict[str, str] = {}
    for node in graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        reasons.setdefault(owner, f"the forward pass also reads {owner}.{name} directly")
    return reasons


def _scale_and_shift(norm: nn.Module, node: fx.Node) -> tuple[Tensor, Tensor]:
    try:
        return norm_scale_and_shift(cast("BatchNorm", norm), str(node.target))
    except UsageError as error:
        raise Refused(str(error)) from error


def _check_pool(pool: nn.Module, name: str, scale: Tensor, shift: Tensor) -> None:
    """Raise Refused if scaling and shifting before the pool differs from doing so after it."""
    if isinstance(pool, MAXIMA) and bool((scale < 0).any()):
        count = int((scale < 0).sum())
        raise Refused(f"{count} of its weights are negative, and {name} before it takes a maximum")
    if isinstance(pool, AVERAGES) and bool(shift.any()):
        padded = (isinstance(pool.padding, int) and pool.padding) or pool.padding not in (0, (0,), (0, 0), (0, 0, 0))
        if (padded and pool.count_include_pad) or getattr(pool, "divisor_override", None) is not None:
            raise Refused(f"{name} before it averages zero padding, which the shift of the norm would change")


def _mergeable(first: nn.Module, second: nn.Module | None) -> bool:
    """Return whether two consecutive layers are exactly one layer of the same class."""
    if type(first) is not type(second) or type(first) not in LAYERS or isinstance(first, TRANSPOSED):
        return False
    if isinstance(first, nn.Linear):
        return True
    conv, following = cast("nn.Conv2d", first), cast("nn.Conv2d", second)
    if conv.groups > 1 or following.groups > 1:
        return False
    if is_pointwise(following):
        return conv.padding != "same" or not any(step > 1 for step in following.stride)
    # The second convolution sees the first one's bias inside the image only, and zeros in its padding.
    return is_pointwise(conv) and set(conv.stride) == {1} and (is_plain(conv) or not pads_zeros(following))


def _positions(node: fx.Node) -> tuple[int, ...]:
    """Return the output positions of a layer: (H, W) of feature maps, the leading dimensions of a linear layer."""
    shape = shape_of(node) or ()
    return shape[2:] if len(shape) > 3 else shape[1:-1]


def _weights(layer: nn.Module) -> int:
    return cast("Tensor", layer.weight).numel()


@torch.no_grad()
def _in_float64(layer: nn.Module, image: Tensor) -> Tensor:
    """Return the layer's output for the image, computed in float64 on the CPU."""
    return cast("Tensor", copy.deepcopy(layer).cpu().double().eval()(image.double()))
