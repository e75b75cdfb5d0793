"""uvicorn's server with an orderly end: on SIGTERM it finishes what was accepted, and exits with code 0."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from uvicorn import Config, Server

from mlpconv.deploy.connection import MOST_CLOSING, GuardedProtocol
from mlpconv.deploy.guard import Guard
from mlpconv.errors import ServerError, first_line

__all__ = ["DrainingServer", "run_until_signal"]

# A malformed request is logged by its connection, a failed start is raised.
REPORTED_ELSEWHERE = ("Invalid HTTP request received.", "Traceback", "Application startup failed")
SPARE_FILES = 256  # file descriptors beside those of the connections
POLL_SECONDS = 0.01
SO_ATTACH_FILTER = 26
# (code, jump if true, jump if false, operand): load the byte of the flags, test SYN, drop or accept.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
CONNECT_SECONDS = 0.05  # after the first packet of a connection; then the event loop has accepted it


async def run_until_signal(guard: Guard, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Answer the connections of a listening socket until SIGTERM or SIGINT, then drain."""
    limits = guard.limits
    _allow_files((1 + MOST_CLOSING) * limits.connections + SPARE_FILES)
    config = Config(
        guard, interface="asgi3", http=GuardedProtocol, ws="none", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=max(1, round(limits.idle_seconds)), backlog=limits.connections,
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)), proxy_headers=False,
    )  # fmt: skip
    logger = logging.getLogger("uvicorn")
    handler = _JsonHandler(guard)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        await DrainingServer(config, guard, on_start).serve([listener])
    except SystemExit:  # the application's lifespan failed to start
        raise ServerError("The application did not start; its log has the cause.") from None
    finally:
        logger.removeHandler(handler)


class DrainingServer(Server):
    """A server that asks its clients to close their connections before it stops to listen."""

    def __init__(self, config: Config, guard: Guard, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self.guard, self.on_start = guard, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        if self.started:
            self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer for a moment longer with `Connection: close`, stop listening, finish the requests in progress."""
        self.guard.draining = True
        await asyncio.sleep(self.guard.limits.linger_seconds)
        await self._stop_listening(sockets or [])
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Ignore new connections, and give those clients a moment to ask that have just connected.

        The kernel accepts connections before the process does; closing the listening socket would reset these.
        """
        for listener in sockets:
            _ignore_new_connections(listener)
        clock = asyncio.get_running_loop().time
        end = clock() + self.guard.limits.linger_seconds
        await asyncio.sleep(CONNECT_SECONDS)
        while self.server_state.connections and clock() < end and not self.force_exit:
            await asyncio.sleep(POLL_SECONDS)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first SIGTERM or SIGINT, at once at a second SIGINT; the exit code is that of the caller."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


class _JsonHandler(logging.Handler):
    """Log what uvicorn reports (warnings and errors) in the format of the guard."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(logging.WARNING)
        self.guard = guard

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(REPORTED_ELSEWHERE):
            return
        error = record.exc_info[1] if record.exc_info else None
        note = f"{type(error).__name__}: {first_line(error)}" if error is not None else record.getMessage().strip()
        self.guard.log({"level": record.levelname.lower(), "note": note})


def _ignore_new_connections(listener: socket.socket) -> None:
    """Let the kernel drop the packets that open a connection; their sender tries again a second later.

    Only Linux can do that. The filter reads the flags of the TCP header, and drops the packet if SYN is set.
    """
    program = b"".join(struct.pack("HBBI", *step) for step in DROP_SYN)
    kept = ctypes.create_string_buffer(program)
    with suppress(OSError):
        if sys.platform == "linux":
            filter_of = struct.pack("HP", len(DROP_SYN), ctypes.addressof(kept))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_of)


def _allow_files(count: int) -> None:
    """Raise the limit on open files, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
