"""Run a guarded application with uvicorn: bind, announce, answer, and drain on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Collection

from mlpconv.deploy.guard import App, Guard, Log, log_to_stderr
from mlpconv.deploy.limits import Limits
from mlpconv.errors import ServerError, UsageError

__all__ = ["LOCAL_HOSTS", "listen", "serve_app"]

LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
MISSING = "Serving needs {}; install it with: pip install 'mlpconv[serve]'."


def serve_app(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    log: Log = log_to_stderr,
    probes: Collection[str] = (),
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve an ASGI application behind a Guard until SIGTERM or Ctrl-C; what was accepted is answered first.

    `port` 0 chooses a free one. `announce` is called with the URL once the server accepts connections. `hosts` are the
    accepted Host headers; None accepts any, but only local ones if `host` is a local address. Paths in `probes` are
    answered also when the server is busy. Raises ServerError if
    the address is in use or not of this machine, UsageError for a port out of range.
    """
    try:
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ServerError(MISSING.format(error.name)) from None
    limits = limits or Limits()
    if hosts is None and host in LOCAL_HOSTS:
        hosts = LOCAL_HOSTS
    guard = Guard(app, limits, hosts=hosts, log=log, probes=probes)
    listener = listen(host, port, limits.connections)
    from mlpconv.deploy.draining import run_until_signal

    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}/"
    asyncio.run(run_until_signal(guard, listener, lambda: announce(url) if announce else None))


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens on an address; raise ServerError if that fails, UsageError for an invalid port."""
    if not 0 <= port <= 65535:
        raise UsageError(f"The port is {port}; expected 0 to 65535.")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError):
        raise ServerError(f"There is no address {host[:100]!r}: give one of this machine, such as 127.0.0.1.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ServerError(_explain(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use: stop the other server, or choose another port."
    if error.errno == errno.EACCES:
        return f"Port {port} needs administrator rights: choose one from 1024 to 65535."
    return f"{host} port {port} cannot be used: {(error.strerror or str(error)).lower()}."
