"""Read a safetensors file that may be damaged or hostile; every number is validated before memory is allocated.

The format: 8 bytes (length of the header, little-endian), the header (JSON: name -> dtype, shape, offsets; strings
under "__metadata__"), then the tensors' bytes without gap or overlap. The format has no checksum. The messages of
ModelFileError start with a verb; the caller puts the file name in front.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpconv.errors import ModelFileError
from mlpconv.files import NotRegularError, open_regular

__all__ = ["DTYPES", "Entry", "Header", "open_model_file", "parse_json", "read_header", "read_tensors"]

MAX_FILE = 2 << 30
MAX_HEADER = 2 << 20
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 8
MAX_DEPTH = 32
# A short text can parse to a great many objects; these limits bound the memory. A tensor takes an object, two lists and
# about eight values.
MAX_OBJECTS = 35_000
MAX_VALUES = 100_000

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".npy", ".npz", ".joblib")
NEVER = "pickle is never read, because it can run code; give a safetensors file written by mlpconv."
DAMAGED = "Copy the file again, or retrain."


@dataclass(frozen=True)
class Entry:
    """The position of one tensor; `start` and `stop` are in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A header, validated against the limits and the length of the file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    raw: bytes


@contextmanager
def open_model_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; raise ModelFileError if it cannot be opened."""
    try:
        file = open_regular(path)
    except NotRegularError:
        raise ModelFileError("is not a regular file: give a file, not a folder, pipe or device.") from None
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror}).") from None
    with file:
        yield file


def read_header(file: BufferedReader, path: Path) -> Header:
    """Read and validate the header; raise ModelFileError."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE:
        raise ModelFileError(
            f"has {size:,} bytes; at most {MAX_FILE:,} are accepted: it is not a model file of mlpconv."
        )
    start = file.read(8)
    length = int.from_bytes(start, "little")
    first = file.read(1)
    if len(start) < 8 or first != b"{" or length > size - 8:
        raise ModelFileError(_explain_other_format(start + first, size, path))
    if length > MAX_HEADER:
        raise ModelFileError(f"has a header of {length:,} bytes, at most {MAX_HEADER:,} are accepted. {DAMAGED}")
    text = first + file.read(length - 1)
    if len(text) < length:
        raise ModelFileError(f"ended unexpectedly. {DAMAGED}")
    parsed = parse_json(text, parse_float=_refuse)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"is damaged: its metadata are not strings. {DAMAGED}")
    if len(parsed) > MAX_TENSORS:
        raise ModelFileError(f"has {len(parsed):,} tensors, at most {MAX_TENSORS:,} are accepted.")
    entries = {name: _entry(name, value) for name, value in parsed.items()}
    _check_layout(entries, size - 8 - length)
    return Header(entries, metadata, start + text)


def _explain_other_format(start: bytes, size: int, path: Path) -> str:
    """Return why a file that does not start like safetensors is rejected."""
    # The length of a header below 16 MiB has five zero bytes here; a pickle has opcodes.
    stream = start[:1] == b"\x80" and b"\x01" < start[1:2] < b"\x06" and any(start[3:8])
    if stream or start[:4] == b"PK\x03\x04" or start[:6] == b"\x93NUMPY" or path.suffix.lower() in PICKLES:
        return f"is a pickle or an archive: {NEVER}"
    if size < 10:
        return f"has only {size} bytes: it is empty or cut off. {DAMAGED}"
    return f"is cut off, or is not a safetensors file (and {NEVER})"


def parse_json(text: bytes | str, parse_float: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Parse a JSON object; raise ModelFileError if it is too large or deep, or has repeated keys, NaN or infinity."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if raw.count(b"{") + raw.count(b"[") > MAX_OBJECTS or raw.count(b",") > MAX_VALUES:
        raise ModelFileError("has a header with more values than any model file of mlpconv.")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        floats = parse_float or _finite
        parsed = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=floats)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise ModelFileError(f"is damaged: its header is not valid JSON ({reason}). {DAMAGED}") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(f"is damaged: its header is not a JSON object. {DAMAGED}")
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return parsed
    raise ModelFileError(f"is damaged: its header is nested more than {MAX_DEPTH} levels deep. {DAMAGED}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key occurs twice")
    return mapping


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant[:40]} is not accepted")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _entry(name: str, value: object) -> Entry:
    """Validate one entry of the header: the offsets match dtype and shape exactly."""
    what = f"is damaged: the header's entry for the tensor {name[:120]!r}"
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{what} is not dtype, shape and offsets. {DAMAGED}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelFileError(f"{what} has the dtype {str(dtype)[:20]!r}; accepted: {', '.join(DTYPES)}.")
    if not _are_integers(shape) or len(shape) > MAX_DIMENSIONS or not _are_integers(offsets) or len(offsets) != 2:
        raise ModelFileError(f"{what} has a shape or offsets that are not non-negative integers. {DAMAGED}")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ModelFileError(f"{what} claims more or fewer bytes than its shape needs. {DAMAGED}")
    return Entry(dtype, tuple(shape), start, stop)


def _are_integers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """Raise ModelFileError unless the tensors fill the file without gap or overlap."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "overlaps another" if entry.start < position else "leaves a gap before it"
            raise ModelFileError(f"is damaged: the tensor {name[:120]!r} {fault}. {DAMAGED}")
        position = entry.stop
    if position != size:
        counts = f"its header describes {position:,} bytes of tensors, the file has {size:,}"
        raise ModelFileError(f"is cut off or damaged: {counts}. {DAMAGED}")


def read_tensors(file: BufferedReader, header: Header, blank: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors, and the SHA-256 of the whole file with the text `blank`, its own digest, replaced by zeros.

    Raises ModelFileError.
    """
    digest = hashlib.sha256(header.raw.replace(blank.encode(), b"0" * len(blank)))
    tensors: dict[str, Tensor] = {}
    for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        content = bytearray(entry.stop - entry.start)
        if file.readinto(content) != len(content):
            raise ModelFileError(f"ended unexpectedly. {DAMAGED}")
        digest.update(content)
        dtype = DTYPES[entry.dtype]
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry.shape)
    return tensors, digest.hexdigest()
