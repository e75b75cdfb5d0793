"""A small application behind the guard, or without it: python benchmarks/echo_server.py guard|uvicorn|granian PORT"""

from __future__ import annotations

import asyncio
import sys

from mlpconv.deploy import Limits, serve_app
from mlpconv.deploy.guard import Receive, Scope, Send

__all__ = ["LIMITS", "app"]

LIMITS = Limits(
    body_bytes=1 << 20, connections=64, receive_seconds=1, answer_seconds=30, send_seconds=1, idle_seconds=60
)
LARGE = b"x" * (64 << 20)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body; /large with 64 MB; /slow never."""
    if scope["type"] != "http":
        await lifespan(receive, send)
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(60)
    content = LARGE if scope["path"] == "/large" else b"%d" % len(body)
    headers = [(b"content-length", str(len(content)).encode()), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def lifespan(receive: Receive, send: Send) -> None:
    """Follow the start and the end of the server."""
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    """Serve until SIGTERM."""
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "guard":
        serve_app(app, port=port, limits=LIMITS, announce=lambda url: print(f"Serving on {url}", flush=True))
        return
    print(f"Serving on http://127.0.0.1:{port}/", flush=True)
    if kind == "uvicorn":
        import uvicorn

        uvicorn.run(app, port=port, http="httptools", ws="none", log_level="critical", access_log=False)
    else:
        from granian import Granian
        from granian.constants import Interfaces

        Granian("echo_server:app", port=port, interface=Interfaces.ASGI, log_enabled=False, websockets=False).serve()


if __name__ == "__main__":
    main()
