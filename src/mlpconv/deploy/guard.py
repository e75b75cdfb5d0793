"""An ASGI guard: it keeps any application within limits, whatever its clients send.

It receives the whole body before the application runs, within a size and a deadline, so that a slow client costs memory
within bounds and no place in the application. It refuses at once what exceeds the limits, cancels what takes too long,
turns every failure into {code, message, id} without internals, and writes one JSON line per request.

What happens before a request exists (slow headers, too many connections) is up to `connection`, slow readers too.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from mlpconv.deploy.limits import Limits

__all__ = ["App", "Guard", "Receive", "Refusal", "Scope", "Send", "error_bytes", "log_to_stderr"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Log = Callable[[dict[str, Any]], None]

CLIENT_GONE = 499  # in the log only: the client closed the connection before its answer
MAX_LOGGED = 300  # characters of a path in the log
RETRY_AFTER = b"1"
BUSY = "The server is busy. Try again in a second."
LONGEST_NUMBER = 18  # digits of a Content-Length
DEFAULT_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
}


class Refusal(Exception):
    """A request that is refused: an HTTP status, a short code for programs and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def error_bytes(code: str, message: str, request_id: str, path: str = "") -> bytes:
    """Return the JSON body of an error; below /v2, `error` repeats the message, as the Open Inference Protocol asks."""
    body = {"code": code, "message": message, "id": request_id}
    return json.dumps(body | {"error": message} if path.startswith("/v2") else body).encode()


def log_to_stderr(entry: dict[str, Any]) -> None:
    """Write an entry as one line of JSON; control characters are escaped, so that no request can forge a line."""
    with suppress(OSError, ValueError):  # a closed log must not stop the server
        sys.stderr.write(json.dumps(entry) + "\n")
        sys.stderr.flush()


class Guard:
    """An ASGI application that answers for `app` within `limits`.

    `hosts` are the accepted values of the Host header, without port (None: any); a page of another origin cannot reach
    a local server by renaming it. `log` gets one dictionary per request. Requests for a path in `probes` are answered
    also by a busy server. The application finds this guard as `scope["mlpconv.guard"]`, and `draining` says that the
    server is about to stop.
    """

    def __init__(
        self,
        app: App,
        limits: Limits | None = None,
        *,
        hosts: Collection[str] | None = None,
        log: Log = log_to_stderr,
        probes: Collection[str] = (),
    ) -> None:
        self.app, self.limits, self.log, self.probes = app, limits or Limits(), log, frozenset(probes)
        self.hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self.draining = False
        self.running = 0
        self.buffered = 0
        self.lingering = 0  # refused connections that are not closed yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within the limits; pass lifespan events through; close WebSockets."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request and its response."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.limits = guard, scope, guard.limits
        self.receive, self.send = receive, send
        self.id = secrets.token_hex(8)
        self.status = 0
        self.finished = False
        self.replaced: MutableMapping[str, Any] | None = None
        self.keep_alive = True
        self.bytes_in = self.bytes_out = 0
        self.note: str | None = None
        scope["mlpconv.guard"], scope["mlpconv.request_id"] = guard, self.id

    async def run(self) -> None:
        """Receive, admit, answer and log."""
        start = time.monotonic()
        try:
            await self._answer()
        except Refusal as refusal:
            if self.status:  # raised after the response had begun
                raise
            await self._refuse(refusal)
        except asyncio.CancelledError:  # the client has gone, or the server gives up waiting
            self.status = self.status or CLIENT_GONE
        except Exception as error:
            self.note = f"{type(error).__name__}: {error}"[:MAX_LOGGED]
            if self.status and not self.finished:  # half an answer: let the server cut the connection
                raise
            if not self.status:
                await self._refuse(Refusal(500, "internal", "The server failed to answer; its log has the cause."))
        finally:
            self.guard.buffered -= self.bytes_in
            self.guard.log(self._entry(time.monotonic() - start))

    async def _answer(self) -> None:
        self._check_head()
        try:
            async with asyncio.timeout(self.limits.receive_seconds):
                body = await self._body()
        except TimeoutError:
            seconds = f"{self.limits.receive_seconds:g} seconds"
            raise self._last(408, "slow", f"The body took longer than {seconds} to arrive.") from None
        await self._run_app(body)

    async def _run_app(self, body: bytes) -> None:
        """Run the application on a received body, if there is a place, and until the deadline."""
        if self.guard.running >= self.limits.requests and self.scope["path"] not in self.guard.probes:
            raise Refusal(503, "busy", BUSY)
        self.guard.running += 1
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                await self.guard.app(self.scope, self._replay(body), self._send)
                if self.replaced is not None:
                    await self._replace(self.replaced)
        except TimeoutError as error:
            if self.status:
                raise
            self.note = f"TimeoutError: {error}"
            raise Refusal(
                504, "deadline", f"The answer took longer than {self.limits.answer_seconds:g} seconds."
            ) from None
        finally:
            self.guard.running -= 1

    def _last(self, status: int, code: str, message: str) -> Refusal:
        """Return a refusal after which the connection is closed, as the rest of the request is not read."""
        self.keep_alive = False
        return Refusal(status, code, message)

    def _check_head(self) -> None:
        """Raise Refusal for headers that announce a body which cannot be accepted, or name another host."""
        lengths, hosts = [], []
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                lengths.append(value)
            elif name == b"host":
                hosts.append(value)
            elif name == b"content-encoding" and value.strip().lower() != b"identity":
                raise self._last(415, "encoding", "Compressed bodies are not accepted; send the file as it is.")
        if len(hosts) != 1 and self.scope.get("http_version") != "1.0":
            raise self._last(400, "host", f"Expected one Host header, got {len(hosts)}.")
        if self.guard.hosts is not None and hosts and _host_name(hosts[0]) not in self.guard.hosts:
            raise self._last(421, "host", "This server does not answer for that Host.")
        if len(lengths) > 1 or any(not value.isdigit() for value in lengths):
            raise self._last(400, "length", "Expected one Content-Length, a number.")
        if lengths and (len(lengths[0]) > LONGEST_NUMBER or int(lengths[0]) > self.limits.body_bytes):
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return self._last(413, "too_large", f"The body is larger than {self.limits.body_bytes:,} bytes.")

    async def _body(self) -> bytes:
        """Receive the body, counting its bytes."""
        parts, more = [], True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            part = message.get("body", b"")
            more = message.get("more_body", False)
            self.bytes_in += len(part)
            self.guard.buffered += len(part)
            if self.bytes_in > self.limits.body_bytes:
                raise self._too_large()
            if self.guard.buffered > self.limits.buffered_bytes:
                raise self._last(503, "busy", BUSY)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _replay(self, body: bytes) -> Receive:
        """Return a `receive` that gives the received body, then waits for the end of the connection."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await self.receive()

        return receive

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message of the application on; keep an error in text or HTML for `_replace`."""
        if self.replaced is not None:
            return
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            kinds = [value for name, value in message.get("headers", []) if name.lower() == b"content-type"]
            if not any(b"json" in kind for kind in kinds):
                self.replaced = message
                return
        await self._pass_on(message)

    async def _replace(self, message: MutableMapping[str, Any]) -> None:
        """Answer with an error of the application in the guard's format; it may have raised a Refusal instead."""
        phrase = HTTPStatus(message["status"]).phrase
        kept = [(name, value) for name, value in message.get("headers", []) if name.lower() == b"allow"]
        await self._refuse(Refusal(message["status"], phrase.lower().replace(" ", "_"), f"{phrase}."), kept)

    async def _pass_on(self, message: MutableMapping[str, Any]) -> None:
        """Send a message of a response; its head gets the request's id and the default headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in DEFAULT_HEADERS.items() if name not in present]
            headers.append((b"x-request-id", self.id.encode()))
            if self.guard.draining or not self.keep_alive:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        else:
            self.bytes_out += len(message.get("body", b""))
            self.finished = not message.get("more_body", False)
        await self.send(message)

    async def _refuse(self, refusal: Refusal, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
        body = error_bytes(refusal.code, refusal.message, self.id, self.scope.get("path", ""))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
        if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", RETRY_AFTER))
        self.note = self.note or refusal.code
        await self._pass_on({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._pass_on({"type": "http.response.body", "body": body})

    def _entry(self, seconds: float) -> dict[str, Any]:
        """Return what the log says about this request."""
        client = self.scope.get("client")
        entry = {
            "time": round(time.time(), 3), "id": self.id, "client": client[0] if client else None,
            "method": self.scope.get("method"), "path": self.scope.get("path", "")[:MAX_LOGGED],
            "status": self.status, "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
            "ms": round(seconds * 1e3, 2),
        }  # fmt: skip
        return entry | {"note": self.note} if self.note else entry


def _host_name(value: bytes) -> str:
    """Return a Host header in lower case without its port."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].removeprefix("[")
    return text.partition(":")[0]
