"""uvicorn's server with an orderly end: on SIGTERM it finishes what was accepted, and exits with code 0."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
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
POLL_SECONDS = 0.02
SPARE_FILES = 256  # file descriptors beside those of the connections


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
        await self._accept_last(sockets or [])
        await self._wait_for_last_requests()
        await super().shutdown(sockets)

    async def _accept_last(self, sockets: list[socket.socket]) -> None:
        """Stop listening, and accept the clients that the kernel had already connected: closing would reset them."""
        waiting = [connection for listener in sockets for connection in _waiting(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with suppress(OSError):  # the client has gone
                await loop.connect_accepted_socket(self._protocol, connection)

    async def _wait_for_last_requests(self) -> None:
        """Let new connections send their request: one that is closed before would lose what is on its way."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.guard.limits.linger_seconds
        while self.server_state.connections and loop.time() < end and not self.force_exit:
            await asyncio.sleep(POLL_SECONDS)

    def _protocol(self) -> GuardedProtocol:
        return GuardedProtocol(self.config, self.server_state, self.lifespan.state)

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


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections of a listening socket that wait to be accepted."""
    with suppress(OSError):  # would block: none is left
        while True:
            yield listener.accept()[0]


def _allow_files(count: int) -> None:
    """Raise the limit on open files, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
