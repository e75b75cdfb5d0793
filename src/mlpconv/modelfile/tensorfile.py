"""One safetensors file that may be damaged or hostile: every number is checked before anything is allocated.

The format: 8 bytes (length of the header, little-endian), the header (JSON: name -> dtype, shape, offsets; texts under
"__metadata__"), then the tensors' bytes without gap or overlap. It has no checksum of its own. A ModelFileError from
here says what is wrong; the caller adds which file.
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
# A short text can stand for a great many objects: these bound what its parsing may allocate. A tensor takes an object
# and two lists, and about eight values.
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
NEVER = "pickle is never read, because it can run programs; give a safetensors file written by mlpconv."
DAMAGED = "Copy the file again, or train anew."


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies; `start` and `stop` in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What the file says about itself, checked against the limits and the file's length."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    raw: bytes


@contextmanager
def open_model_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; raise ModelFileError where there is none."""
    try:
        file = open_regular(path)
    except NotRegularError:
        raise ModelFileError("is not a regular file: give a file, not a folder, pipe or device.") from None
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror}).") from None
    with file:
        yield file


def read_header(file: BufferedReader, path: Path) -> Header:
    """Read and check all but the tensors' bytes; raises ModelFileError."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE:
        raise ModelFileError(f"has {size:,} bytes, at most {MAX_FILE:,} are accepted: it is no model of mlpconv.")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    first = file.read(1)
    if len(start) < 8 or first != b"{" or length > size - 8:
        raise ModelFileError(_what_else(start + first, size, path))
    if length > MAX_HEADER:
        raise ModelFileError(f"has a header of {length:,} bytes, at most {MAX_HEADER:,} are accepted. {DAMAGED}")
    text = first + file.read(length - 1)
    if len(text) < length:
        raise ModelFileError(f"ended while it was read. {DAMAGED}")
    parsed = parse_json(text, parse_float=_refuse)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"is damaged: its metadata are not texts. {DAMAGED}")
    if len(parsed) > MAX_TENSORS:
        raise ModelFileError(f"has {len(parsed):,} tensors, at most {MAX_TENSORS:,} are accepted.")
    entries = {name: _entry(name, value) for name, value in parsed.items()}
    _check_layout(entries, size - 8 - length)
    return Header(entries, metadata, start + text)


def _what_else(start: bytes, size: int, path: Path) -> str:
    """Why a file that does not begin like safetensors is refused."""
    # The length of a header of less than 16 MiB has five zeros here; a pickle has operations.
    stream = start[:1] == b"\x80" and b"\x01" < start[1:2] < b"\x06" and any(start[3:8])
    if stream or start[:4] == b"PK\x03\x04" or start[:6] == b"\x93NUMPY" or path.suffix.lower() in PICKLES:
        return f"is a pickle or an archive: {NEVER}"
    if size < 10:
        return f"has only {size} bytes: it is empty or cut off. {DAMAGED}"
    return f"is cut off, or is not a safetensors file (and {NEVER})"


def parse_json(text: bytes | str, parse_float: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """A JSON object within limits of count and depth, without repeated keys, NaN or infinity; else ModelFileError."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if raw.count(b"{") + raw.count(b"[") > MAX_OBJECTS or raw.count(b",") > MAX_VALUES:
        raise ModelFileError("has a header with more values than any model of mlpconv.")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        floats = parse_float or _finite
        parsed = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=floats)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise ModelFileError(f"is damaged: its header is not JSON that can be read ({reason}). {DAMAGED}") from None
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
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant[:40]} is no number that belongs here")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _entry(name: str, given: object) -> Entry:
    """One checked line of the header: the offsets hold exactly what dtype and shape need."""
    what = f"is damaged: the header's entry for the tensor {name[:120]!r}"
    if not isinstance(given, Mapping) or set(given) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{what} is not dtype, shape and offsets. {DAMAGED}")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelFileError(f"{what} has the dtype {str(dtype)[:20]!r}; accepted: {', '.join(DTYPES)}.")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ModelFileError(f"{what} has a shape or offsets that are not whole numbers from 0. {DAMAGED}")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ModelFileError(f"{what} claims more or fewer bytes than its shape needs. {DAMAGED}")
    return Entry(dtype, tuple(shape), start, stop)


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """The tensors follow each other without gap or overlap, and fill the file to its end."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "overlaps another" if entry.start < position else "leaves a gap before it"
            raise ModelFileError(f"is damaged: the tensor {name[:120]!r} {fault}. {DAMAGED}")
        position = entry.stop
    if position != size:
        counts = f"{position:,} bytes of tensors are described, {size:,} are there"
        raise ModelFileError(f"is cut off or damaged: {counts}. {DAMAGED}")


def read_tensors(file: BufferedReader, header: Header, blank: str) -> tuple[dict[str, Tensor], str]:
    """Read the tensors after the header, and the SHA-256 of the whole file with the text `blank` taken as zeros.

    (A file that holds its own digest cannot hold it while the digest is computed.) Raises ModelFileError.
    """
    digest = hashlib.sha256(header.raw.replace(blank.encode(), b"0" * len(blank)))
    tensors: dict[str, Tensor] = {}
    for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        content = bytearray(entry.stop - entry.start)
        if file.readinto(content) != len(content):
            raise ModelFileError(f"ended while it was read. {DAMAGED}")
        digest.update(content)
        dtype = DTYPES[entry.dtype]
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry.shape)
    return tensors, digest.hexdigest()
