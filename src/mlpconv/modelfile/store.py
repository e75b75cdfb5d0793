"""Our meaning of a safetensors file: the network, its preprocessing, its classes and how it was made.

Tensors are "model.*" and "preprocessing.*"; the metadata has one key, "mlpconv", with a JSON object: format, version,
sha256, model, preprocessing, classes, input_size, info. The digest is over the whole file with its own 64 digits taken
as zeros, so that every flipped bit is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from mlpconv import __version__
from mlpconv.errors import ModelFileError, NonFiniteError, UsageError
from mlpconv.files import write_atomic
from mlpconv.modelfile.parts import ModelFile, Size, check_parts
from mlpconv.modelfile.template import check_described, compare, filled, make_template, stored_dtype
from mlpconv.modelfile.tensorfile import (
    DAMAGED,
    MAX_HEADER,
    Header,
    open_model_file,
    parse_json,
    read_header,
    read_tensors,
)
from mlpconv.models.weights import pretrained_names, pretrained_path
from mlpconv.preprocessing import Preprocessing
from mlpconv.threads import one_thread

__all__ = ["MODEL_FILE", "read", "save"]

FORMAT, VERSION = "mlpconv model", 3
KEY = "mlpconv"
NO_DIGEST = "0" * 64
MODEL_FILE = "model.safetensors"
KINDS = {
    "format": str,
    "version": int,
    "sha256": str,
    "model": dict,
    "preprocessing": dict,
    "classes": list,
    "input_size": list,
    "info": dict,
}


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str],
    input_size: Size,
    info: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Write a model file, all or nothing; the network stays as it is.

    `half` stores as float16 the weights of two or more axes, and whatever loses nothing by it (both load as float32); a
    network in float64 is rounded to float32. Raises UsageError for parts that do not fit, a network that its
    configuration does not describe, `info` that is not JSON or a path that is a folder, NonFiniteError for NaN or
    infinite weights, OSError where the file cannot be written.
    """
    network = check_parts(model, preprocessing, classes, input_size)
    dtypes = check_described(network)
    if Path(path).is_dir():
        raise UsageError(f"{str(path)!r} is a folder: give a file, such as {str(Path(path, MODEL_FILE))!r}.")
    if not preprocessing.ready:
        raise UsageError("The preprocessing is not fitted yet: call fit(training images) before saving.")
    described = network.config.to_dict()
    fitted = Preprocessing.from_config(preprocessing.config()).state_dict()
    tensors = _stored(model, "model", dtypes, half)
    tensors |= _stored(preprocessing, "preprocessing", {name: value.dtype for name, value in fitted.items()})
    versions = {"mlpconv": __version__, "torch": version("torch"), "python": platform.python_version()}
    document = {
        "format": FORMAT,
        "version": _version_for(described, preprocessing),
        "sha256": NO_DIGEST,
        "model": described,
        "preprocessing": preprocessing.config(),
        "classes": list(classes),
        "input_size": list(input_size),
        "info": {"versions": versions, **info},
    }
    try:
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
        content = bytes_of(tensors, metadata={KEY: text})
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"info is not JSON without NaN, which a model file holds: {error}.") from None
    write_atomic(Path(path), _sealed(content))


def _version_for(described: Mapping[str, Any], preprocessing: Preprocessing) -> int:
    """The first version that can say what the network is: older programs go on reading what they understand."""
    if preprocessing.decode_options.to_dict():
        return 3
    return 2 if any("ranks" in block for block in described.get("blocks", ())) else 1


def _stored(module: nn.Module, prefix: str, dtypes: Mapping[str, torch.dtype], half: bool = False) -> dict[str, Tensor]:
    """A module's tensors as they are written: on the CPU, contiguous, sharing nothing, finite, of a loadable dtype."""
    stored: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        value = value.to(stored_dtype(value, dtypes[name]))
        if half and value.dtype == torch.float32 and (value.dim() > 1 or torch.equal(value.half().float(), value)):
            value = value.half()
        if not _all_finite(value):
            kind = "in the network"
            if _all_finite(tensor):
                kind = "as float16 (use half=False)" if value.dtype == torch.float16 else f"as {value.dtype}"
            raise NonFiniteError(f"{prefix}.{name} is NaN or infinite {kind}: it is not saved.")
        stored[f"{prefix}.{name}"] = value
    return stored


def _all_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _sealed(content: bytes) -> bytes:
    """The file with the digest in the place of its 64 zeros; raises UsageError where it could not be read again."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:
        raise UsageError(f"info makes a header of {length:,} bytes, {MAX_HEADER:,} are accepted: store less in it.")
    try:
        parse_json(parse_json(content[8 : 8 + length])["__metadata__"][KEY])
    except ModelFileError as error:
        raise UsageError(f"info cannot be stored, as the file then {error}") from None
    place = content.index(b'\\"sha256\\":\\"' + NO_DIGEST.encode()) + len(b'\\"sha256\\":\\"')
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + len(NO_DIGEST) :]


@one_thread()
def read(path_or_name: str | os.PathLike[str]) -> ModelFile:
    """Read a model file, that of a run folder, or the weights of that name that ship with the package.

    Everything is checked before memory is taken or a network is built, and nothing in the file can run. Raises
    ModelFileError for a file that is missing, damaged, hostile or not ours.
    """
    path = _find(os.fspath(path_or_name))
    try:
        with open_model_file(path) as file:
            header = read_header(file, path)
            document = _document(header)
            parts = make_template(document, header.entries)
            compare(parts, header.entries)
            tensors, digest = read_tensors(file, header, document["sha256"])
        _check_values(tensors, digest, document["sha256"])
        model, preprocessing = filled(document, parts, tensors)
    except ModelFileError as error:
        raise ModelFileError(f"The model file {str(path)!r} {error}") from None
    channels, height, width = document["input_size"]
    return ModelFile(model, preprocessing, tuple(document["classes"]), (channels, height, width), document["info"])


def _find(given: str) -> Path:
    """The file that a path, a run folder or a name stands for; a path goes before a name."""
    path = Path(given)
    if os.path.isdir(path):  # noqa: PTH112  (unlike Path.is_dir it is False, not an error, for an impossible name)
        if not os.path.lexists(path / MODEL_FILE):
            raise ModelFileError(f"The folder {given!r} has no {MODEL_FILE}: give a model file or a finished run.")
        return path / MODEL_FILE
    if os.path.lexists(path):
        return path
    shipped = pretrained_names()
    if given in shipped:
        return pretrained_path(given)
    names = ", ".join(shipped) or "none in this release"
    advice = f"give a model file, a run folder, or the name of shipped weights ({names})"
    raise ModelFileError(f"There is no file or folder {given[:300]!r}: {advice}.")


def _document(header: Header) -> dict[str, Any]:
    """What the metadata say, each part of the right kind."""
    if KEY not in header.metadata:
        raise ModelFileError("is a safetensors file that mlpconv did not write: give one that `mlpconv train` wrote.")
    document = parse_json(header.metadata[KEY])
    if document.get("format") != FORMAT or type(document.get("version")) is not int:
        raise ModelFileError(f"is damaged: it does not say which format it has. {DAMAGED}")
    if document["version"] > VERSION:
        newer = f"has version {document['version']} of the format, this mlpconv reads up to {VERSION}"
        raise ModelFileError(f"{newer}: install a newer mlpconv.")
    if set(document) != set(KINDS) or not all(type(document[key]) is kind for key, kind in KINDS.items()):
        raise ModelFileError(f"is damaged: its description lacks a part, or has one too many. {DAMAGED}")
    if len(document["sha256"]) != len(NO_DIGEST):
        raise ModelFileError(f"is damaged: its digest is not a SHA-256. {DAMAGED}")
    return document


def _check_values(tensors: Mapping[str, Tensor], digest: str, written: str) -> None:
    """What was read is what was written, and all of it numbers."""
    if digest != written:
        raise ModelFileError(f"is damaged: its SHA-256 is not the one that was written. {DAMAGED}")
    for name, tensor in tensors.items():
        if not _all_finite(tensor):
            raise ModelFileError(f"has NaN or infinity in the tensor {name!r}: train the network anew.")
