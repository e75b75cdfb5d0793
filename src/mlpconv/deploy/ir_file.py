"""Exported OpenVINO files: NAME.xml with the graph and the metadata, and NAME.bin with the weights beside it.

The metadata are in the graph's `rt_info`, with a digest of the weights and of the graph without the metadata.
"""

from __future__ import annotations

import hashlib
import re
from html import escape, unescape
from pathlib import Path

from mlpconv.deploy.metadata import KEY, Metadata
from mlpconv.deploy.onnx_file import EXPORT_AGAIN, read_exported
from mlpconv.errors import ExportError

__all__ = ["read_ir", "seal_ir"]

ENTRY = re.compile(rb'<mlpconv value="([^"]*)" */>')
END = b"</rt_info>\n</net>"


def seal_ir(xml: bytes, weights: bytes, metadata: Metadata) -> bytes:
    """Return the graph with metadata and digest added to its `rt_info`; raise ExportError for another kind of file."""
    before, end, after = xml.rpartition(END)
    if not end:
        raise ExportError("is not a graph that OpenVINO wrote.")
    text = escape(metadata.to_json(_digest(xml, weights)))
    return before + f'<{KEY} value="{text}" />'.encode() + end + after


def read_ir(path: Path) -> tuple[Metadata, bytes, bytes]:
    """Read an exported OpenVINO file and the weights beside it; return its metadata, graph and weights.

    Raises ExportError for a file that is missing, damaged or of another program.
    """
    xml = read_exported(path)
    found = ENTRY.search(xml)
    if found is None:
        missing = f"it has no metadata {KEY!r} (classes, input size, decoding)"
        raise ExportError(f"The file {str(path)!r} is not an export of mlpconv: {missing}. {EXPORT_AGAIN}")
    weights = read_exported(path.with_suffix(".bin"))
    try:
        metadata, digest = Metadata.from_json(unescape(found[1].decode()))
    except (ExportError, UnicodeDecodeError) as error:
        raise ExportError(f"The file {str(path)!r} {error}") from None
    if _digest(xml[: found.start()] + xml[found.end() :], weights) != digest:
        beside = path.with_suffix(".bin").name
        raise ExportError(f"The file {str(path)!r} or {beside!r} is damaged: their SHA-256 differs. {EXPORT_AGAIN}")
    return metadata, xml, weights


def _digest(xml: bytes, weights: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(xml).digest() + hashlib.sha256(weights).digest()).hexdigest()
