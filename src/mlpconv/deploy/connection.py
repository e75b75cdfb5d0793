"""HTTP connections within limits: uvicorn's protocol with deadlines and bounds for what precedes a request.

uvicorn waits for headers, and for a client to read its response, without a deadline; it stores headers of any size.
This subclass closes connections that are slow or too many, and answers malformed requests in the guard's format.
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlpconv.deploy.guard import BUSY, Guard, Refusal, error_bytes

__all__ = ["MOST_CLOSING", "GuardedProtocol"]

LINGER_SECONDS = 1.0  # a refused client may be sending still: it gets this long to read the answer
FREE_CHUNKS, MIN_CHUNK = 1000, 128  # chunks of a body beyond the first must have this many bytes on average
MAX_PIPELINED = 16
MOST_CLOSING = 3  # times the limit of connections: refused ones that may still read their answer


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `config.loaded_app` must be a Guard, whose limits apply."""

    guard: Guard
    deadline: asyncio.TimerHandle | None = None  # of the headers
    stall: asyncio.TimerHandle | None = None  # of a client that does not read
    lingering = False
    receiving = False  # the body of a request
    progress = False  # whether the parser has reported anything in this call
    silent = 0  # bytes since the parser's last report
    head_bytes = chunks = body_bytes = 0
    refusal: Refusal | None = None
    task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless too many are open."""
        self.guard = cast("Guard", self.config.loaded_app)
        limit, closing = self.guard.limits.connections, self.guard.lingering
        full = len(self.connections) - closing >= limit
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        if full and closing >= MOST_CLOSING * limit:
            transport.abort()
        elif full:
            self.refuse(Refusal(503, "busy", BUSY))
        else:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what was being computed for this connection."""
        self._stop_deadline()
        if self.stall is not None:
            self.stall.cancel()
        if self.lingering:
            self.guard.lingering -= 1
        super().connection_lost(exc)
        if self.task is not None and self.cycle is not None and not self.cycle.response_complete:
            self.task.cancel()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse headers, trailers or chunks of unreasonable size."""
        if self.lingering:
            return
        self.progress = False
        super().data_received(data)
        self.silent = 0 if self.progress else self.silent + len(data)
        if self.lingering or self.transport.is_closing():
            return
        if self.silent > self.guard.limits.header_bytes:
            self.refuse(self._headers_too_large())
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
        elif not self.receiving and not self.progress:
            self._start_deadline()

    def eof_received(self) -> None:
        """Close the connection when the client has closed its side after a refusal."""
        if self.lingering:
            cast("_Transport", self.transport).finish()

    def on_message_begin(self) -> None:
        """Start to receive a request."""
        super().on_message_begin()
        self.head_bytes = self.chunks = self.body_bytes = 0
        self._start_deadline()

    def on_url(self, url: bytes) -> None:
        """Receive a part of the request's target."""
        self.head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Receive a header, or a trailer, which is dropped."""
        self.progress = True
        self.head_bytes += len(name) + len(value) + 4
        limits = self.guard.limits
        if self.head_bytes > limits.header_bytes or len(self.headers) >= limits.header_count:
            self.refusal = self._headers_too_large()
            raise ValueError(self.refusal.message)
        if self.receiving:
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer a request."""
        self.progress = self.receiving = True
        self._stop_deadline()
        if self.head_bytes > self.guard.limits.header_bytes:
            self.refusal = self._headers_too_large()
            raise ValueError(self.refusal.message)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Receive a part of the body."""
        self.progress = True
        self.body_bytes += len(body)
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """Count the chunks: a body in tiny pieces costs much more to parse than to send."""
        self.chunks += 1
        if self.chunks > FREE_CHUNKS and self.body_bytes < self.chunks * MIN_CHUNK:
            self.refusal = Refusal(400, "chunks", "The body comes in too many tiny chunks.")
            raise ValueError(self.refusal.message)

    def on_message_complete(self) -> None:
        """Finish receiving a request."""
        self.progress, self.receiving, self.head_bytes = True, False, 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Close an idle connection; one with a request is closed after its response, as the guard is draining."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self.head_bytes == 0:
            self.transport.close()

    def pause_writing(self) -> None:
        """Reset the connection if its client does not read for a while."""
        super().pause_writing()
        self.stall = self.loop.call_later(self.guard.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue to write."""
        super().resume_writing()
        if self.stall is not None:
            self.stall.cancel()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer a malformed request."""
        self.refuse(self.refusal or Refusal(400, "malformed", "This is not a valid HTTP/1.1 request."))

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, outside of the application, and close the connection."""
        request_id = secrets.token_hex(8)
        client = self.client[0] if self.client else None
        self.guard.log({"id": request_id, "client": client, "status": refusal.status, "note": refusal.code})
        unanswered = self.cycle is not None and self.receiving and not self.cycle.response_started
        if unanswered:
            self.cycle.disconnected = True  # whatever the application sends is dropped
        if unanswered or self.cycle is None or self.cycle.response_complete:
            body = error_bytes(refusal.code, refusal.message, request_id)
            head = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
            head += "retry-after: 1\r\n" if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE else ""
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        cast("_Transport", self.transport).linger()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _headers_too_large(self) -> Refusal:
        limits = self.guard.limits
        accepted = f"{limits.header_bytes:,} bytes in {limits.header_count} headers"
        return Refusal(431, "headers", f"The headers are too large; accepted: {accepted}.")

    def _start_deadline(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.guard.limits.receive_seconds, self._too_slow)

    def _stop_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.refuse(Refusal(408, "slow", "The headers took too long to arrive."))


class _Transport:
    """A transport that closes in a way that lets a client read its answer while it is still sending.

    Closing a socket with unread data resets the connection, which can destroy the answer on its way. What is written at
    once, such as headers and body, is sent at once: a system call costs more than the rest of a response.
    """

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._unsent: list[bytes] = []
        self.abort = transport.abort
        self.get_extra_info, self.is_closing = transport.get_extra_info, transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        """Send data in the next iteration of the event loop, together with what else is written until then."""
        if self._protocol.lingering:  # the response has ended
            return
        if not self._unsent:
            self._protocol.loop.call_soon(self._send)
        self._unsent.append(data)

    def _send(self) -> None:
        if self._unsent:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def close(self) -> None:
        """Close at once if the request was received, otherwise after a moment."""
        if self._protocol.receiving:
            self.linger()
        else:
            self.finish()

    def linger(self) -> None:
        """Send the end of the response, then read and drop what still arrives, for a moment."""
        protocol = self._protocol
        if protocol.lingering or self._transport.is_closing():
            return
        self._send()
        protocol.lingering = True
        protocol.guard.lingering += 1
        protocol.flow.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        protocol.loop.call_later(LINGER_SECONDS, self.finish)

    def finish(self) -> None:
        """Close the connection; a client that does not read for a while is cut off."""
        self._send()
        if not self._transport.is_closing():
            self._transport.close()
        if self._transport.get_write_buffer_size():
            self._protocol.loop.call_later(self._protocol.guard.limits.send_seconds, self._transport.abort)
