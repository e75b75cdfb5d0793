"""Messages between the server and its workers: a JSON header and raw bytes. Nothing in them can run."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["frame", "receive", "receive_async"]

HEAD = struct.Struct("<4sIQ")
MAGIC = b"mlpc"
MAX_HEADER, MAX_PAYLOAD = 16 << 20, 4 << 30

Message = tuple[dict[str, Any], memoryview]


def frame(header: dict[str, Any], parts: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """Return the pieces of a message: its lengths, its header as JSON, then the parts of its payload."""
    text = json.dumps(header).encode()
    size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    return [HEAD.pack(MAGIC, len(text), size), text, *parts]


def receive(connection: socket.socket) -> Message | None:
    """Return the next message of a blocking socket, or None at its end; raise ConnectionError for anything else."""
    head = _exactly(connection, HEAD.size)
    if head is None:
        return None
    header_size, payload_size = _sizes(head)
    body = _exactly(connection, header_size + payload_size)
    if body is None:
        raise ConnectionError("a message is cut short")
    return json.loads(bytes(body[:header_size])), body[header_size:]


async def receive_async(reader: asyncio.StreamReader) -> Message:
    """Return the next message of a stream; raise ConnectionError or IncompleteReadError for anything else."""
    header_size, payload_size = _sizes(memoryview(await reader.readexactly(HEAD.size)))
    body = memoryview(await reader.readexactly(header_size + payload_size))
    return json.loads(bytes(body[:header_size])), body[header_size:]


def _sizes(head: memoryview) -> tuple[int, int]:
    magic, header_size, payload_size = HEAD.unpack(head)
    if magic != MAGIC or header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise ConnectionError("this is not a message")
    return header_size, payload_size


def _exactly(connection: socket.socket, count: int) -> memoryview | None:
    """Return `count` bytes, or None at the end of the stream."""
    buffer = bytearray(count)
    view, received = memoryview(buffer), 0
    while received < count:
        size = connection.recv_into(view[received:])
        if not size:
            if received:
                raise ConnectionError("a message is cut short")
            return None
        received += size
    return view
