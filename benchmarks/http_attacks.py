"""Hostile HTTP traffic: each attack says what a server did about it. Used by attacks.py and tests/attacks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress

__all__ = ["ATTACKS", "HELD", "KEPT_SENDING", "PATIENCE", "canary", "outcome"]

PATIENCE = 3.0
"""Seconds after which a connection that is still open counts as held; the tests' servers have deadlines of 1 second."""
HELD = "held open"
KEPT_SENDING = "accepted everything"
LARGE = 64 << 20
MOST_SENT = 80 << 20
HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def outcome(port: int, pieces: Iterable[bytes], pause: float = 0.0) -> str:
    """Send pieces until the server answers; return the status, "closed", "held open" or "accepted everything".

    Sending stops after PATIENCE seconds, or at MOST_SENT bytes.
    """
    deadline, sent = time.monotonic() + PATIENCE, 0
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        for piece in pieces:
            try:
                connection.settimeout(PATIENCE)
                connection.sendall(piece)
                connection.settimeout(pause or 0.0001)
                if answered := connection.recv(12, socket.MSG_PEEK):
                    return _status(connection) if answered else "closed"
            except (TimeoutError, BlockingIOError):
                pass
            except OSError:
                return _status(connection)
            sent += len(piece)
            if time.monotonic() > deadline:
                return HELD if pause else KEPT_SENDING
            if sent > MOST_SENT:
                return KEPT_SENDING
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        return _status(connection)


def _status(connection: socket.socket) -> str:
    """Return the status of the response, "closed" for none, "held open" if the connection stays open without one."""
    content = b""
    try:
        while len(content) < 12 or content.startswith(b"HTTP/1.1 100"):
            part = connection.recv(4096)
            if not part:
                return "closed"
            content += part
            if content.startswith(b"HTTP/1.1 100"):
                content = content.partition(b"\r\n\r\n")[2]
    except TimeoutError:
        return HELD
    except OSError:
        return "closed"
    return content[9:12].decode("latin-1")


def canary(port: int) -> str:
    """Return the status of an ordinary request."""
    return outcome(port, [HEAD + b"Content-Length: 2\r\n\r\nhi"])


def drops(text: bytes) -> Iterator[bytes]:
    """Yield a text one byte at a time."""
    return (bytes([byte]) for byte in text)


def endless(first: bytes, piece: bytes) -> Iterator[bytes]:
    """Yield a beginning, then the same piece for ever."""
    yield first
    while True:
        yield piece


def slow_reader(port: int) -> str:
    """Ask for a large response and do not read it; then return whether the whole response still came."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(PATIENCE)
        connection.settimeout(PATIENCE)
        received = 0
        with suppress(OSError):
            while received < LARGE and (part := connection.recv(1 << 20)):
                received += len(part)
    return HELD if received >= LARGE else "closed"


def idle_connections(port: int, count: int = 30, rounds: int = 40) -> str:
    """Open many connections that send nothing, some at a time; return what a further one gets.

    More at a time than the kernel queues for a slow server would be tried again after a second, when the first ones
    have reached their deadline.
    """
    with ExitStack() as stack:
        for _ in range(rounds):
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            if (answer := canary(port)) != "200":
                return answer
    return "accepted"


def pipelined(port: int) -> str:
    """Send ten thousand requests without waiting; return what became of the connection."""
    content = (HEAD + b"Content-Length: 0\r\n\r\n") * 10_000
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        answers = 0
        with suppress(OSError):
            connection.sendall(content)
            connection.settimeout(PATIENCE)
            while answers < 10_000 and (part := connection.recv(1 << 16)):
                answers += part.count(b"HTTP/1.1 200")
    return "answered all" if answers >= 10_000 else "closed"


Attack = Callable[[int], str]
ATTACKS: dict[str, Attack] = {
    "headers, one byte at a time": lambda port: outcome(port, drops(HEAD * 9), pause=0.3),
    "a connection that sends nothing": lambda port: outcome(port, [b""]),
    "a body, one byte at a time": lambda port: outcome(
        port, [HEAD + b"Content-Length: 99\r\n\r\n", *drops(b"x" * 90)], pause=0.3
    ),
    "a client that does not read": slow_reader,
    "many idle connections": idle_connections,
    "ten thousand pipelined requests": pipelined,
    "one endless header": lambda port: outcome(port, endless(HEAD + b"X: ", b"x" * 65536)),
    "endless headers": lambda port: outcome(port, endless(HEAD, b"X: y\r\n" * 5000)),
    "an endless request line": lambda port: outcome(port, endless(b"GET /", b"x" * 65536)),
    "an endless body": lambda port: outcome(port, endless(CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n")),
    "a body of one-byte chunks": lambda port: outcome(port, endless(CHUNKED, b"1\r\nx\r\n" * 10000)),
    "an endless trailer": lambda port: outcome(port, endless(CHUNKED + b"0\r\nX: ", b"x" * 65536)),
    "an announced body of 10 TB": lambda port: outcome(port, [HEAD + b"Content-Length: 10000000000000\r\n\r\n"]),
    "a compressed body": lambda port: outcome(
        port, [HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"]
    ),
    "Content-Length and Transfer-Encoding": lambda port: outcome(
        port, [HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
    ),
    "two lengths": lambda port: outcome(port, [HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"]),
    "no Host": lambda port: outcome(port, [b"GET /echo HTTP/1.1\r\n\r\n"]),
    "another Host": lambda port: outcome(port, [b"GET /echo HTTP/1.1\r\nHost: attacker.example\r\n\r\n"]),
    "not HTTP": lambda port: outcome(port, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"]),
    "a NUL in a header": lambda port: outcome(port, [HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n"]),
}
"""What is sent, and a function that sends it to a port and returns what the server did."""
