"""The routes of the local page: its files, and the numbers of the network as JSON and raw float64.

Nothing is loaded from a request but the bytes of one image. Every answer but `POST /api/images` is a pure function of
its address.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from mlpconv.errors import ImageError, MlpconvError, UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from mlpconv.explorer.subject import Subject

__all__ = ["MAX_BODY", "POLICY", "make_app", "static_files"]

MAX_BODY = 16 << 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
DIGITS = 9


def static_files() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = resources.files("mlpconv.explorer").joinpath("static")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}


def make_app(subject: Subject | None, other: Subject | None = None) -> Starlette:
    """Return the ASGI app of the page; with None it has the playground alone, with `other` a comparison.

    The app answers any host: `mlpconv.deploy.serve_app` puts it behind a check of the Host header.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    marks = {"network": subject, "other": other}
    routes = [Route("/", _index([name for name, one in marks.items() if one is not None])), _static()]
    subjects = [one for one in (subject, other) if one is not None]
    for path, one in zip(("/api", "/api/other"), subjects, strict=False):
        routes += _api(path, one)
    if subjects:
        routes.append(_images(subjects))
    handlers: Any = {MlpconvError: _explain}
    return Starlette(routes=routes, middleware=[Middleware(_Headers)], exception_handlers=handlers)


class _Headers:
    """ASGI middleware: the headers of every answer."""

    HEADERS = (
        (b"content-security-policy", POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def _index(marks: list[str]) -> Any:
    """Return the endpoint of the document, with a mark for each network that the server has."""
    from starlette.responses import Response

    page = static_files()["index.html"]
    for mark in marks:
        page = page.replace(f'data-{mark}="no"'.encode(), f'data-{mark}="yes"'.encode())

    async def index(request: Request) -> Response:  # noqa: ARG001  (the signature of an endpoint)
        return Response(page, media_type="text/html")

    return index


def _static() -> Any:
    """Return the route of the page's files."""
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    files = static_files()

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return JSONResponse({"code": "not_found", "message": "There is no such file."}, 404)
        return Response(files[name], media_type=TYPES[name.rpartition(".")[2]])

    return Route("/static/{name}", static)


def _api(path: str, subject: Subject) -> list[Any]:
    """Return the routes of the network's numbers; a plain `def` runs in a thread, so that the loop stays free."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def model(request: Request) -> Response:  # noqa: ARG001
        return JSONResponse(subject.describe())

    def pixels(request: Request) -> Response:
        image = _number(request, "image")
        subject.input(image)
        return _raw(subject.pixels[image].contiguous().numpy().tobytes())

    def outputs(request: Request) -> Response:
        steps = [_natural(word, "steps") for word in request.query_params.get("steps", "").split(",") if word]
        values = subject.outputs(_number(request, "image"), request.query_params.get("edits", ""), steps)
        return _raw(b"".join(value.contiguous().numpy().tobytes() for value in values))

    def weights(request: Request) -> Response:
        only = _number(request, "filter") if "filter" in request.query_params else None
        values = subject.weights(_number(request, "step"), request.query_params.get("edits", ""), only)
        return _raw(values.double().numpy().tobytes())

    def accuracy(request: Request) -> Response:
        return JSONResponse(subject.accuracy(request.query_params.get("edits", "")))

    endpoints = (model, pixels, outputs, weights, accuracy)
    return [Route(f"{path}/{endpoint.__name__}", endpoint) for endpoint in endpoints]


def _images(subjects: list[Subject]) -> Any:
    """Return the route that adds an image to every network of the page."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def images(request: Request) -> Response:
        # A page of another site cannot send this content type without asking first, and is never told yes.
        if request.headers.get("content-type") != "application/octet-stream":
            raise UsageError("Send the bytes of an image as application/octet-stream.")
        body = await _bounded_body(request)
        for subject in subjects:
            await run_in_threadpool(subject.add, body, request.query_params.get("name", ""))
        return JSONResponse({"images": subjects[0].names})

    return Route("/api/images", images, methods=["POST"])


async def _bounded_body(request: Request) -> bytes:
    """Return the body; raise ImageError as soon as it exceeds MAX_BODY."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise ImageError(f"The file has more than {MAX_BODY >> 20} MiB; send a smaller image.")
    return b"".join(parts)


def _number(request: Request, name: str) -> int:
    return _natural(request.query_params.get(name, ""), name)


def _natural(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
        raise UsageError(f"{name} is {text[:40]!r}; expected a whole number from 0.")
    return int(text)


def _raw(content: bytes) -> Response:
    from starlette.responses import Response

    return Response(content, media_type="application/octet-stream")


async def _explain(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer an error of the user in one sentence."""
    from starlette.responses import JSONResponse

    return JSONResponse({"code": type(error).__name__, "message": str(error)}, 422)
