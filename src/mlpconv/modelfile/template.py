"""The parts of a model file without memory for their tensors: what the file must hold, known before it is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlpconv.errors import MlpconvError, ModelFileError, UsageError
from mlpconv.modelfile.parts import check_parts
from mlpconv.modelfile.tensorfile import DAMAGED, DTYPES, Entry
from mlpconv.models import registry
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing

__all__ = ["Parts", "check_described", "compare", "filled", "make_template", "stored_dtype"]

Parts = tuple[Network, Preprocessing]
Part = TypeVar("Part", bound=nn.Module)
# What code that expects well-formed values raises when it meets others.
MALFORMED = (MlpconvError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
HALVES = (torch.float16, torch.bfloat16)


class _Unstarted(TorchFunctionMode):
    """Leave out what gives tensors their first values.

    On tensors without memory these operations are run by torch's compiler, whose import alone takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_):
            return given["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.__setitem__):
            return args[0]
        if func is Tensor.__getitem__ and isinstance(args[1], tuple) and any(isinstance(k, Tensor) for k in args[1]):
            return args[0]
        if func is torch.arange:
            return func(*args, **given | {"device": "cpu"})
        if func is torch.eye:
            return torch.empty(args[0], args[0], **given)
        return func(*args, **given)


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), _Unstarted():
        yield


def make_template(document: Mapping[str, Any], entries: Mapping[str, Entry]) -> Parts:
    """The network and the preprocessing that a model file describes; raises ModelFileError where they cannot be."""
    if _settings(document["model"]) > 100 + 20 * len(entries):  # a layer of 3 to 7 settings has a tensor or more
        raise ModelFileError(f"describes a network of far more layers than its {len(entries)} tensors. {DAMAGED}")
    try:
        with _without_memory():
            model = registry.build(document["model"])
            preprocessing = Preprocessing.from_config(document["preprocessing"])
        return check_parts(model, preprocessing, document["classes"], document["input_size"]), preprocessing
    except MALFORMED as error:
        raise ModelFileError(f"describes a network that cannot be built: {str(error)[:300]}") from None


def _settings(value: Any) -> int:
    """How many single values a description holds; it is known not to be deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if inner is None else sum(_settings(each) for each in inner)


def check_described(network: Network) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor that the network's configuration describes.

    Raises UsageError for a network that it does not describe, as surgery may leave one.
    """
    with _without_memory():
        described = registry.build(network.config.to_dict()).state_dict()
    own = network.state_dict()
    odd = [name for name in sorted({*own, *described}) if name not in own or name not in described]
    odd += [name for name in own if name in described and own[name].shape != described[name].shape]
    if odd:
        raise UsageError(
            f"This network is no longer what its configuration describes ({odd[0]!r} and {len(odd) - 1} others), so a "
            "model file cannot hold it. Change it in a way that its configuration knows, or keep its state_dict."
        )
    return {name: value.dtype for name, value in described.items()}


def stored_dtype(tensor: Tensor, described: torch.dtype) -> torch.dtype:
    """The dtype in which a model file keeps a tensor of a network whose configuration describes another.

    Half precision stays as it is, since it loads as float32; other floating types become the one that is described.
    """
    kept = described == torch.float32 and tensor.dtype in HALVES
    return described if tensor.is_floating_point() and described.is_floating_point and not kept else tensor.dtype


def compare(parts: Parts, entries: Mapping[str, Entry]) -> None:
    """The file has exactly the tensors that its network needs; a float32 may be stored in half. Else ModelFileError."""
    wanted = {f"model.{name}": value for name, value in parts[0].state_dict().items()}
    wanted |= {f"preprocessing.{name}": value for name, value in parts[1].state_dict().items()}
    lacking, unexpected = wanted.keys() - entries.keys(), entries.keys() - wanted.keys()
    for names, fault in ((lacking, "lacks"), (unexpected, "has, unexpected,")):
        if names:
            raise ModelFileError(f"{fault} the tensor {min(names)[:120]!r} ({len(names)} such). {DAMAGED}")
    for name, value in wanted.items():
        entry = entries[name]
        if entry.shape != tuple(value.shape):
            needed = f"its network needs {tuple(value.shape)}"
            raise ModelFileError(f"has the tensor {name!r} in shape {entry.shape}, {needed}. {DAMAGED}")
        given = DTYPES[entry.dtype]
        if given != value.dtype and not (value.dtype == torch.float32 and given in HALVES):
            needed = f"its network needs {value.dtype}"
            raise ModelFileError(f"has the tensor {name!r} as {entry.dtype}, {needed}. {DAMAGED}")


def filled(document: Mapping[str, Any], parts: Parts, tensors: Mapping[str, Tensor]) -> Parts:
    """The parts with the file's tensors, whose names and shapes were compared."""
    model = _fill(parts[0], lambda: registry.build(document["model"]), "model", tensors)
    preprocessing = _fill(
        parts[1], lambda: Preprocessing.from_config(document["preprocessing"]), "preprocessing", tensors
    )
    return model, preprocessing


def _fill(part: Part, build: Any, prefix: str, tensors: Mapping[str, Tensor]) -> Part:
    """The template itself with tensors in it, or, where it has some that no file holds, a part built anew."""
    state = {name: tensors[f"{prefix}.{name}"].to(like.dtype) for name, like in part.state_dict().items()}
    part.load_state_dict(state, assign=True)
    if not any(tensor.is_meta for tensor in [*part.parameters(), *part.buffers()]):
        return part
    with torch.random.fork_rng(devices=[]):  # loading must not move the generator that training draws from
        built: Part = build()
    built.load_state_dict(state)
    return built
