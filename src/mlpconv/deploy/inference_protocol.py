"""The Open Inference Protocol, version 2: metadata, and requests and responses as JSON with optional binary tensors.

With the binary extension a body is JSON, then the raw bytes of the tensors; a header says how long the JSON is. The
model has two inputs, of which a request gives one: `images`, pixels as UINT8 (N, C, H, W), or `files`, encoded image
files as BYTES (N,).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.metadata import Metadata

__all__ = ["BINARY_HEADER", "InferenceRequest", "model_metadata", "parse_request", "response_body"]

BINARY_HEADER = "inference-header-content-length"
MAX_JSON = 4 << 20
MAX_IMAGES = 256
MAX_SIDE = 4096
ACCEPTED = "accepted: one input, images (UINT8, N x C x H x W) or files (BYTES, N)"


class InferenceRequest(NamedTuple):
    """A parsed request."""

    id: str
    parts: list[bytes | memoryview]
    """The pixels, or the files."""
    shape: tuple[int, ...] | None
    """Of the pixels; None for files."""
    images: int
    outputs: tuple[str, ...]
    binary: frozenset[str]
    """Outputs to return as raw bytes."""


def model_metadata(metadata: Metadata, name: str) -> dict[str, Any]:
    """Return the metadata of the model in the protocol's format."""
    channels, height, width = metadata.input_size
    sides = [-1, -1] if metadata.any_size else [height, width]
    outputs = [
        {"name": output, "datatype": "FP32", "shape": [-1, len(metadata.classes), *([-1, -1] * (output == "maps"))]}
        for output in metadata.outputs
    ]
    return {
        "name": name, "versions": ["1"], "platform": "mlpconv",
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, channels, *sides]},
            {"name": "files", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": outputs,
    }  # fmt: skip


def parse_request(body: bytes, json_length: str | None, metadata: Metadata) -> InferenceRequest:
    """Return a parsed request; raise Refusal for anything that does not follow the protocol or the model's inputs."""
    document, rest = _split(body, json_length)
    entry = _single_input(document)
    binary_size = _parameters(entry).get("binary_data_size")
    data: Any = entry.get("data")
    if binary_size is not None:
        if type(binary_size) is not int or binary_size != len(rest):
            raise _invalid(f"binary_data_size is {str(binary_size)[:20]}, and {len(rest)} bytes follow the JSON.")
        data = rest
    elif len(rest):
        raise _invalid(f"{len(rest)} bytes follow the JSON, and the input has no binary_data_size.")
    outputs, binary = _outputs(document, metadata)
    name = str(document.get("id", ""))[:200]
    shape = _shape(entry)
    if entry.get("name") == "files":
        parts = _files(entry, shape, data)
        return InferenceRequest(name, parts, None, len(parts), outputs, binary)
    return InferenceRequest(name, [_pixels(entry, shape, data, metadata)], shape, shape[0], outputs, binary)


def _invalid(message: str) -> Refusal:
    return Refusal(400, "request", message)


def _split(body: bytes, json_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON object of a body and the bytes after it."""
    length = len(body)
    if json_length is not None:
        if not json_length.isascii() or not json_length.isdigit() or len(json_length) > 12:
            raise _invalid(f"The header {BINARY_HEADER} must be a number of bytes.")
        length = int(json_length)
    if length > len(body):
        raise _invalid(f"The header {BINARY_HEADER} is {length}; the body has {len(body)} bytes.")
    if length > MAX_JSON:
        raise Refusal(413, "too_large", f"The JSON is larger than {MAX_JSON:,} bytes: send the tensor as binary data.")
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise _invalid("The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("The body is not a JSON object.")
    return document, memoryview(body)[length:]


def _single_input(document: Mapping[str, Any]) -> dict[str, Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _invalid(f"inputs must be a list of one tensor; {ACCEPTED}.")
    entry: dict[str, Any] = inputs[0]
    if entry.get("name") not in ("images", "files"):
        raise _invalid(f"There is no input {str(entry.get('name'))[:40]!r}; {ACCEPTED}.")
    return entry


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _invalid("parameters must be an object.")
    return parameters


def _shape(entry: Mapping[str, Any]) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4:
        raise _invalid(f"shape must be a list of numbers; {ACCEPTED}.")
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in shape) or shape[0] > MAX_IMAGES:
        raise _invalid(f"The shape must have sides of 1 to {MAX_SIDE}, with at most {MAX_IMAGES} images.")
    return tuple(shape)


def _outputs(document: Mapping[str, Any], metadata: Metadata) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the requested outputs (default: probabilities), and those wanted as raw bytes."""
    all_binary = _parameters(document).get("binary_data_output") is True
    requested = document.get("outputs", [{"name": "probabilities"}])
    if not isinstance(requested, list) or not 1 <= len(requested) <= len(metadata.outputs):
        raise _invalid(f"outputs must be a list of at most {len(metadata.outputs)} objects.")
    names, binary = [], set()
    for entry in requested:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in metadata.outputs or name in names:
            raise _invalid(f"There is no output {str(name)[:40]!r} here; accepted: {', '.join(metadata.outputs)}.")
        names.append(name)
        if _parameters(entry).get("binary_data", all_binary) is True:
            binary.add(name)
    return tuple(names), frozenset(binary)


def _pixels(entry: Mapping[str, Any], shape: tuple[int, ...], data: Any, metadata: Metadata) -> bytes | memoryview:
    """Return the pixels of the input `images` as raw bytes."""
    channels, height, width = metadata.input_size
    if entry.get("datatype") != "UINT8":
        raise _invalid(f"The datatype of images is {str(entry.get('datatype'))[:20]!r}; accepted: UINT8.")
    if len(shape) != 4 or shape[1] != channels:
        raise _invalid(f"The shape of images is {list(shape)}; accepted: [N, {channels}, H, W].")
    least = metadata.min_size
    if min(shape[2:]) < least or (not metadata.any_size and shape[2:] != (height, width)):
        accepted = f"at least {least}x{least}" if metadata.any_size else f"{height}x{width}"
        raise Refusal(422, "size", f"The images are {shape[2]}x{shape[3]}; accepted: {accepted} pixels.")
    count = int(np.prod(shape, dtype=np.int64))
    if isinstance(data, memoryview):
        if len(data) != count:
            raise _invalid(f"The shape {list(shape)} needs {count} bytes, got {len(data)}.")
        return data
    return _from_numbers(data, count)


def _from_numbers(data: Any, count: int) -> bytes:
    """Return a list of numbers 0 to 255, nested or flat, as bytes."""
    while isinstance(data, list) and data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise _invalid("data mixes numbers and lists.")
        data = [value for part in data for value in part]
    if not isinstance(data, list) or len(data) != count:
        raise _invalid(f"data must be a list of {count} numbers, as the shape says.")
    try:
        return bytes(data)
    except (TypeError, ValueError):
        raise _invalid("data must be integers from 0 to 255.") from None


def _files(entry: Mapping[str, Any], shape: tuple[int, ...], data: Any) -> list[bytes | memoryview]:
    """Return the encoded images of the input `files`: each with its length in four bytes, little-endian, before it."""
    if entry.get("datatype") != "BYTES" or len(shape) != 1:
        raise _invalid("files must have the datatype BYTES and the shape [N].")
    if not isinstance(data, memoryview):
        raise _invalid("files must be sent as binary data.")
    parts: list[bytes | memoryview] = []
    position = 0
    while position + 4 <= len(data) and len(parts) < shape[0]:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4 + size
        if position <= len(data):
            parts.append(data[position - size : position])
    if position != len(data) or len(parts) != shape[0]:
        raise _invalid("The lengths in files do not add up to its bytes.")
    return parts


def response_body(
    name: str, request: InferenceRequest, outputs: Mapping[str, NDArray[np.float32]]
) -> tuple[list[bytes], int | None]:
    """Return the parts of a response body, and the length of its JSON if raw bytes follow it."""
    entries, blobs = [], []
    for output in request.outputs:
        array = outputs[output]
        entry: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": list(array.shape)}
        if output in request.binary:
            blobs.append(array.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    document = {"model_name": name, "model_version": "1", "outputs": entries}
    text = json.dumps(document | ({"id": request.id} if request.id else {}), separators=(",", ":")).encode()
    return [text, *blobs], len(text) if blobs else None
