"""Serve the page on this machine alone, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mlpconv.errors import UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["HOST", "serve"]

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]
"""Accepted Host headers: a foreign name that resolves to this machine is refused (DNS rebinding)."""
CONNECTIONS = 64


def serve(app: Starlette, port: int, announce: Callable[[str], None]) -> None:
    """Serve an app on 127.0.0.1, call `announce` with its address, and return after Ctrl-C; port 0 takes a free one.

    Raises UsageError if the port is in use.
    """
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guarded = TrustedHostMiddleware(app, allowed_hosts=HOSTS, www_redirect=False)
    config = uvicorn.Config(
        guarded, host=HOST, port=port, log_level="critical", limit_concurrency=CONNECTIONS, lifespan="off",
        server_header=False, date_header=False,
    )  # fmt: skip
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn's answer to a port that cannot be bound
        raise UsageError(f"Port {port} of {HOST} is in use: pass another one with --port, or 0 for any.") from None
    listening.listen(CONNECTIONS)  # a browser that is faster than the server waits instead of being refused
    announce(f"http://{HOST}:{listening.getsockname()[1]}/")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
