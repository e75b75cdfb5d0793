"""Exported ONNX files: read and verified without the onnx package, and sealed with metadata and a digest.

An ONNX file is one protobuf message, and the concatenation of two messages is their merger. So the metadata are
appended as the last field, with the SHA-256 of everything before them: every flipped bit and missing byte is detected.
Files with external data are refused, as a runtime would read other files of the machine for them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlpconv.deploy.metadata import KEY, Metadata
from mlpconv.errors import ExportError
from mlpconv.files import NotRegularError, open_regular

__all__ = ["MAX_FILE", "read_exported", "read_onnx", "seal"]

MAX_FILE = 2 << 30  # protobuf's own limit
GRAPH, METADATA, FUNCTIONS = 7, 14, 25  # fields of ModelProto
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15  # of GraphProto
NODE_ATTRIBUTE = 5  # of NodeProto
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)  # of AttributeProto
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto
MAX_DEPTH = 8  # graphs inside graphs
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
EXPORT_AGAIN = "Export it again with `mlpconv export`."

Field = tuple[int, int, int, int]
"""(number, start of the field, start of its content, end) in bytes."""


def seal(model: bytes, metadata: Metadata) -> bytes:
    """Append metadata, with the digest of the model, to a serialised ONNX model."""
    text = metadata.to_json(hashlib.sha256(model).hexdigest()).encode()
    entry = b"\x0a" + _varint(len(KEY)) + KEY.encode() + b"\x12" + _varint(len(text)) + text
    return model + _varint(METADATA << 3 | BYTES) + _varint(len(entry)) + entry


def read_exported(path: Path) -> bytes:
    """Read a file of at most 2 GB; raise ExportError if it cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read() if size <= MAX_FILE else b""
    except FileNotFoundError:
        raise ExportError(f"There is no file {str(path)!r}: give a file from `mlpconv export`.") from None
    except NotRegularError as error:
        raise ExportError(f"{str(path)!r} is {error.strerror}: give a file from `mlpconv export`.") from None
    if size > MAX_FILE:
        raise ExportError(f"{str(path)!r} is larger than {MAX_FILE:,} bytes.")
    return content


def read_onnx(path: Path) -> tuple[Metadata, bytes]:
    """Read an exported ONNX file; return its metadata and its bytes.

    Raises ExportError for a file that is missing, damaged, of another program, or with external data.
    """
    content = read_exported(path)
    try:
        return _verified(memoryview(content)), content
    except ExportError as error:
        raise ExportError(f"The file {str(path)!r} {error}") from None


def _verified(content: memoryview) -> Metadata:
    """Return the metadata of a file whose digest matches and that has no external data."""
    if not len(content):
        raise ExportError(f"is empty. {EXPORT_AGAIN}")
    try:
        fields = list(_fields(content, 0, len(content)))
        last = fields[-1]
        text = _entry(content, last) if last[0] == METADATA else None
        if text is None and not any(field[0] == GRAPH for field in fields):
            raise ExportError(f"is not an ONNX model. {EXPORT_AGAIN}")
    except (IndexError, ValueError):
        raise ExportError(f"is damaged, cut short, or not an ONNX model. {EXPORT_AGAIN}") from None
    if text is None:
        missing = f"has no metadata {KEY!r} at its end (classes, input size, decoding)"
        raise ExportError(f"is not an export of mlpconv: it {missing}. {EXPORT_AGAIN}")
    metadata, digest = Metadata.from_json(text)
    if hashlib.sha256(content[: last[1]]).hexdigest() != digest:
        raise ExportError(f"is damaged: its SHA-256 does not match. {EXPORT_AGAIN}")
    try:
        for number, _, start, end in fields:
            if number == GRAPH:
                _check_graph(content, start, end, 0)
            elif number == FUNCTIONS:
                raise ExportError("has functions, which exports of mlpconv have not.")
    except (IndexError, ValueError):
        raise ExportError(f"is damaged. {EXPORT_AGAIN}") from None
    return metadata


def _entry(content: memoryview, field: Field) -> bytes | None:
    """Return the value of a metadata entry if it is ours."""
    parts = {number: bytes(content[start:end]) for number, _, start, end in _fields(content, field[2], field[3])}
    return parts.get(2) if parts.get(1) == KEY.encode() else None


def _check_graph(content: memoryview, start: int, end: int, depth: int) -> None:
    """Raise ExportError for external or sparse data in a graph or the graphs in it."""
    if depth > MAX_DEPTH:
        raise ExportError("has graphs that are nested too deeply.")
    for number, _, first, last in _fields(content, start, end):
        if number == INITIALIZER:
            _check_tensor(content, first, last)
        elif number == SPARSE_INITIALIZER:
            raise ExportError("has sparse data, which exports of mlpconv have not.")
        elif number == NODE:
            for attribute, _, low, high in _fields(content, first, last):
                if attribute == NODE_ATTRIBUTE:
                    _check_attribute(content, low, high, depth)


def _check_attribute(content: memoryview, start: int, end: int, depth: int) -> None:
    for number, _, first, last in _fields(content, start, end):
        if number in ATTRIBUTE_TENSORS:
            _check_tensor(content, first, last)
        elif number in ATTRIBUTE_GRAPHS:
            _check_graph(content, first, last, depth + 1)
        elif number in ATTRIBUTE_SPARSE:
            raise ExportError("has sparse data, which exports of mlpconv have not.")


def _check_tensor(content: memoryview, start: int, end: int) -> None:
    for number, _, first, _ in _fields(content, start, end):
        if number == EXTERNAL_DATA or (number == DATA_LOCATION and content[first] != 0):
            raise ExportError("has external data: its weights are in other files, which are never opened.")


def _fields(content: memoryview, position: int, end: int) -> Iterator[Field]:
    """Yield the fields of a protobuf message; raise ValueError or IndexError for anything else."""
    while position < end:
        start = position
        tag, position = _read_varint(content, position, end)
        kind = tag & 7
        if kind == VARINT:
            first = position
            _, position = _read_varint(content, position, end)
        elif kind == BYTES:
            length, first = _read_varint(content, position, end)
            position = first + length
        elif kind in (FIXED64, FIXED32):
            first = position
            position += 8 if kind == FIXED64 else 4
        else:
            raise ValueError("an unknown wire type")
        if position > end or tag >> 3 == 0:
            raise ValueError("a field beyond the end")
        yield tag >> 3, start, first, position


def _read_varint(content: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ValueError("a number beyond the end")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
