"""Save and read model files: a network, its preprocessing, its class names and how it was trained.

A model file is a safetensors file with the tensors "model.*" and "preprocessing.*". Its metadata have one key,
"mlpconv", with a JSON object: format, version, sha256, model, preprocessing, classes, input_size, info. The digest is
that of the whole file with its own 64 digits replaced by zeros, so that every flipped bit is detected.
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
from mlpconv.data.folder_layout import RUN_FILES
from mlpconv.errors import ModelFileError, NonFiniteError, UsageError
from mlpconv.files import EXPORTED, MODEL_FILE, write_atomic
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

__all__ = ["is_model_path", "read", "save"]

FORMAT, VERSION = "mlpconv model", 3
KEY = "mlpconv"
NO_DIGEST = "0" * 64
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
    """Save a network, its preprocessing, class names and `input_size` (C, H, W) as a model file, atomically.

    `half` stores as float16 weights of two or more axes, and tensors that float16 represents exactly; both load as
    float32. A float64 network is rounded to float32. Raises UsageError for incompatible parts, a network that differs
    from its configuration, `info` that is not JSON, or a path that is a folder; NonFiniteError for NaN or infinite
    weights; OSError if the file cannot be written.
    """
    network = check_parts(model, preprocessing, classes, input_size)
    dtypes = check_described(network)
    if Path(path).is_dir():
        raise UsageError(f"{str(path)!r} is a folder: give a file, such as {str(Path(path, MODEL_FILE))!r}.")
    if not preprocessing.ready:
        raise UsageError("The preprocessing is not fitted: call fit(training images) before saving.")
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
        raise UsageError(f"info cannot be stored as JSON without NaN: {error}.") from None
    write_atomic(Path(path), _sealed(content))


def _version_for(described: Mapping[str, Any], preprocessing: Preprocessing) -> int:
    """Return the oldest format version that can describe the network, so that older releases can read the file."""
    if preprocessing.decode_options.to_dict():
        return 3
    return 2 if any("ranks" in block for block in described.get("blocks", ())) else 1


def _stored(module: nn.Module, prefix: str, dtypes: Mapping[str, torch.dtype], half: bool = False) -> dict[str, Tensor]:
    """Return a module's tensors as stored: finite contiguous copies on the CPU, in a loadable dtype."""
    stored: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        value = value.to(stored_dtype(value, dtypes[name]))
        if half and value.dtype == torch.float32 and (value.dim() > 1 or torch.equal(value.half().float(), value)):
            value = value.half()
        if not _all_finite(value):
            where = "in the network"
            if _all_finite(tensor):
                where = "as float16 (use half=False)" if value.dtype == torch.float16 else f"as {value.dtype}"
            raise NonFiniteError(f"{prefix}.{name} is NaN or infinite {where}: not saved.")
        stored[f"{prefix}.{name}"] = value
    return stored


def _all_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _sealed(content: bytes) -> bytes:
    """Return the file with the digest in place of its 64 zeros; raise UsageError for a header beyond the limits."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:
        raise UsageError(f"info makes a header of {length:,} bytes; at most {MAX_HEADER:,} are accepted: store less.")
    try:
        parse_json(parse_json(content[8 : 8 + length])["__metadata__"][KEY])
    except ModelFileError as error:
        raise UsageError(f"info cannot be stored: the file {error}") from None
    key = b'\\"sha256\\":\\"'
    start = content.index(key + NO_DIGEST.encode()) + len(key)
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[start + len(NO_DIGEST) :]


@one_thread()
def read(path_or_name: str | os.PathLike[str]) -> ModelFile:
    """Read a model file, the model file of a run folder, or a shipped network by name.

    The file is validated before memory is allocated or a network is built, and nothing in it can run. Raises
    ModelFileError for a file that is missing, damaged, hostile or not a model file.
    """
    source = os.fspath(path_or_name)
    path = _find(source)
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
        raise ModelFileError(f"The model file {str(path)!r} {error}{_advice(source)}") from None
    channels, height, width = document["input_size"]
    return ModelFile(model, preprocessing, tuple(document["classes"]), (channels, height, width), document["info"])


def is_model_path(source: str) -> bool:
    """Return whether a source is a path rather than a name: a file, or a folder with a model file or a run in it.

    Any other folder, such as one of images, does not hide a network of its name.
    """
    if not os.path.isdir(source):  # noqa: PTH112  (unlike Path.is_dir it is False, not an error, for an impossible name)
        return os.path.lexists(source)
    return any(os.path.lexists(os.path.join(source, name)) for name in (MODEL_FILE, *RUN_FILES))  # noqa: PTH118


def _advice(source: str) -> str:
    """Return what to do about a path that was taken for a model file: it hides a network, or is an exported file."""
    if source in pretrained_names() and is_model_path(source):
        return f" Rename it to use the shipped network {source}."
    if source.lower().endswith(EXPORTED):
        return " An exported file is run by `mlpconv predict` and `mlpconv serve` alone: give its model file."
    return ""


def _find(source: str) -> Path:
    """Return the model file of a path, a run folder or a name; a path takes precedence over a name."""
    if not source:  # as a path it would be the current folder
        raise ModelFileError("There is no file or folder '': give a model file, a run folder, or a shipped network.")
    path, shipped = Path(source), pretrained_names()
    if source in shipped and not is_model_path(source):
        return pretrained_path(source)
    if os.path.isdir(path):  # noqa: PTH112
        if not os.path.lexists(path / MODEL_FILE):
            accepted = f"give a model file or a finished run{', or rename it' if source in shipped else ''}"
            raise ModelFileError(f"The folder {source!r} has no {MODEL_FILE}: {accepted}.")
        return path / MODEL_FILE
    if os.path.lexists(path):
        return path
    names = ", ".join(shipped) or "none in this release"
    advice = f"give a model file, a run folder, or the name of a shipped network ({names})"
    raise ModelFileError(f"There is no file or folder {source[:300]!r}: {advice}.")


def _document(header: Header) -> dict[str, Any]:
    """Return the metadata, with the type of every part checked."""
    if KEY not in header.metadata:
        raise ModelFileError("is a safetensors file but not a model file of mlpconv: give one from `mlpconv train`.")
    document = parse_json(header.metadata[KEY])
    if document.get("format") != FORMAT or type(document.get("version")) is not int:
        raise ModelFileError(f"is damaged: its format is missing. {DAMAGED}")
    if document["version"] > VERSION:
        newer = f"has format version {document['version']}; this mlpconv reads up to {VERSION}"
        raise ModelFileError(f"{newer}: install a newer mlpconv.")
    if set(document) != set(KINDS) or not all(type(document[key]) is kind for key, kind in KINDS.items()):
        raise ModelFileError(f"is damaged: its metadata have missing or unexpected parts. {DAMAGED}")
    if len(document["sha256"]) != len(NO_DIGEST):
        raise ModelFileError(f"is damaged: its digest is not a SHA-256. {DAMAGED}")
    return document


def _check_values(tensors: Mapping[str, Tensor], digest: str, expected: str) -> None:
    """Check the digest, and that all values are finite."""
    if digest != expected:
        raise ModelFileError(f"is damaged: its SHA-256 does not match. {DAMAGED}")
    for name, tensor in tensors.items():
        if not _all_finite(tensor):
            raise ModelFileError(f"has NaN or infinity in the tensor {name!r}: retrain the network.")
