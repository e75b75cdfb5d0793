"""Build the parts of a model file without memory for tensors, to know what the file must hold before reading it."""

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
# What code raises on malformed values.
MALFORMED = (MlpconvError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
HALVES = (torch.float16, torch.bfloat16)


class _SkipInitialisation(TorchFunctionMode):
    """Skip the initialisation of parameters.

    On meta tensors torch's compiler runs these operations, whose import alone takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_):
            return options["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.__setitem__):
            return args[0]
        if func is Tensor.__getitem__ and isinstance(args[1], tuple) and any(isinstance(k, Tensor) for k in args[1]):
            return args[0]
        if func is torch.arange:
            return func(*args, **options | {"device": "cpu"})
        if func is torch.eye:
            return torch.empty(args[0], args[0], **options)
        return func(*args, **options)


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), _SkipInitialisation():
        yield


def make_template(document: Mapping[str, Any], entries: Mapping[str, Entry]) -> Parts:
    """Return the network and preprocessing that a model file describes; raise ModelFileError if they are invalid."""
    if _settings(document["model"]) > 100 + 20 * len(entries):  # a layer has 3 to 7 settings and at least one tensor
        raise ModelFileError(f"describes a network of far more layers than its {len(entries)} tensors. {DAMAGED}")
    try:
        with _without_memory():
            model = registry.build(document["model"])
            preprocessing = Preprocessing.from_config(document["preprocessing"])
        return check_parts(model, preprocessing, document["classes"], document["input_size"]), preprocessing
    except MALFORMED as error:
        raise ModelFileError(f"describes a network that cannot be built: {str(error)[:300]}") from None


def _settings(value: Any) -> int:
    """Count the scalar values of a description, whose depth is limited."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if inner is None else sum(_settings(item) for item in inner)


def check_described(network: Network) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor that the network's configuration describes.

    Raises UsageError for a network that differs from its configuration, as after surgery.
    """
    with _without_memory():
        described = registry.build(network.config.to_dict()).state_dict()
    own = network.state_dict()
    odd = [name for name in sorted({*own, *described}) if name not in own or name not in described]
    odd += [name for name in own if name in described and own[name].shape != described[name].shape]
    if odd:
        raise UsageError(
            f"This network differs from its configuration ({odd[0]!r} and {len(odd) - 1} others), so a model file "
            "cannot hold it. Store its state_dict instead."
        )
    return {name: value.dtype for name, value in described.items()}


def stored_dtype(tensor: Tensor, described: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model file stores a tensor whose configuration describes the dtype `described`.

    Half precision is kept, because it loads as float32; other floating-point dtypes become `described`.
    """
    kept = described == torch.float32 and tensor.dtype in HALVES
    return described if tensor.is_floating_point() and described.is_floating_point and not kept else tensor.dtype


def compare(parts: Parts, entries: Mapping[str, Entry]) -> None:
    """Raise ModelFileError unless the file has exactly the tensors of its network, float32 possibly stored as half."""
    expected = {f"model.{name}": value for name, value in parts[0].state_dict().items()}
    expected |= {f"preprocessing.{name}": value for name, value in parts[1].state_dict().items()}
    missing, unexpected = expected.keys() - entries.keys(), entries.keys() - expected.keys()
    for names, fault in ((missing, "lacks"), (unexpected, "has, unexpected,")):
        if names:
            raise ModelFileError(f"{fault} the tensor {min(names)[:120]!r} ({len(names)} such). {DAMAGED}")
    for name, value in expected.items():
        entry = entries[name]
        if entry.shape != tuple(value.shape):
            needed = f"its network needs {tuple(value.shape)}"
            raise ModelFileError(f"has the tensor {name!r} in shape {entry.shape}, {needed}. {DAMAGED}")
        dtype = DTYPES[entry.dtype]
        if dtype != value.dtype and not (value.dtype == torch.float32 and dtype in HALVES):
            needed = f"its network needs {value.dtype}"
            raise ModelFileError(f"has the tensor {name!r} as {entry.dtype}, {needed}. {DAMAGED}")


def filled(document: Mapping[str, Any], parts: Parts, tensors: Mapping[str, Tensor]) -> Parts:
    """Return the parts with the file's tensors, after `compare`."""
    model = _fill(parts[0], lambda: registry.build(document["model"]), "model", tensors)
    preprocessing = _fill(
        parts[1], lambda: Preprocessing.from_config(document["preprocessing"]), "preprocessing", tensors
    )
    return model, preprocessing


def _fill(part: Part, build: Any, prefix: str, tensors: Mapping[str, Tensor]) -> Part:
    """Return the template with tensors, or a rebuilt part if it has buffers that no file holds."""
    state = {name: tensors[f"{prefix}.{name}"].to(like.dtype) for name, like in part.state_dict().items()}
    part.load_state_dict(state, assign=True)
    if not any(tensor.is_meta for tensor in [*part.parameters(), *part.buffers()]):
        return part
    with torch.random.fork_rng(devices=[]):  # loading must not advance the global generator
        built: Part = build()
    built.load_state_dict(state)
    return built
