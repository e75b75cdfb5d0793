"""The model server: the Open Inference Protocol, and simple routes and a page for people."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlpconv import __version__
from mlpconv.deploy.form_data import files_of
from mlpconv.deploy.guard import Log, Receive, Refusal, Scope, Send, log_to_stderr
from mlpconv.deploy.inference_protocol import BINARY_HEADER, model_metadata, parse_request, response_body
from mlpconv.deploy.ir_file import read_ir
from mlpconv.deploy.limits import Limits
from mlpconv.deploy.metadata import Metadata
from mlpconv.deploy.metrics import Metrics
from mlpconv.deploy.onnx_file import read_onnx
from mlpconv.deploy.open_api import open_api
from mlpconv.deploy.serving import serve_app
from mlpconv.deploy.worker_pool import Job, Result, WorkerPool
from mlpconv.errors import ServerError, UsageError

__all__ = ["PROBES", "ModelServer", "ServeOptions", "serve_model"]

PROBES = ("/v2/health/live", "/v2/health/ready", "/metrics")
MAX_TOP = 1000
PAGES = {"/": "index.html", "/docs": "docs.html"}
STATIC = {"style.css": "text/css", "classify.js": "text/javascript", "docs.js": "text/javascript"}


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served; raises UsageError for a value out of range."""

    name: str | None = None
    """The model's name in the routes; default: that of the file."""
    engine: str = "auto"
    workers: int = 1
    """Processes that decode images and run the network."""
    threads: int | None = None
    """Of each worker; default: the cores divided by the workers."""
    batch_size: int = 32
    """Most images that a worker runs together."""
    latency: float = 0.1
    """Seconds that a request may wait for a worker; if more are expected, it is refused at once with 503."""
    compute_seconds: float = 5.0
    """After which a worker that has not answered is replaced."""
    max_pixels: int = 25_000_000
    """Of an image file."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("name", "engine") and value is not None and not value > 0:
                raise UsageError(f"{name} is {value!r}; expected a positive number.")


class ModelServer:
    """The ASGI application of one model; `app` is to be put behind a Guard."""

    def __init__(self, path: Path, options: ServeOptions, log: Log = log_to_stderr) -> None:
        """Verify the exported file; raise ExportError if it cannot be used. The lifespan of `app` starts workers."""
        self.metadata: Metadata = (read_ir if path.suffix.lower() == ".xml" else read_onnx)(path)[0]
        self.path, self.options = path, options
        self.name = re.sub(r"[^A-Za-z0-9._-]", "-", options.name or path.stem)  # as in the routes
        self.metrics = Metrics()
        self._log = log
        self.pool: WorkerPool
        self.failure: ServerError | None = None
        self._routed = Starlette(routes=self._routes(), lifespan=self._lifespan)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; raise Refusal for one that would wait too long, before any work for it."""
        if scope["type"] == "http" and scope["method"] == "POST":
            self.pool.admit()
        await self._routed(scope, receive, send)

    def log(self, entry: dict[str, Any]) -> None:
        """Count an entry of the log, and write it."""
        self.metrics.logged(entry)
        self._log(entry)

    def _routes(self) -> list[Route]:
        model = f"/v2/models/{self.name}"
        routes = [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.is_ready),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/maps", self.maps, methods=["POST"]),
            Route("/metrics", self.metrics_text),
            Route("/openapi.json", self.openapi),
        ]
        for prefix in (model, f"{model}/versions/1"):
            routes += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.is_ready),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        routes += [Route(path, _file(name, "text/html")) for path, name in PAGES.items()]
        routes += [Route(f"/static/{name}", _file(name, kind)) for name, kind in STATIC.items()]
        return routes

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        options = self.options
        self.pool = WorkerPool(
            self.path, engine=options.engine, workers=options.workers, threads=options.threads or _threads(options),
            batch_size=options.batch_size, latency=options.latency, compute_seconds=options.compute_seconds,
            max_pixels=options.max_pixels, stages=self.metrics, log=self.log,
        )  # fmt: skip
        try:
            await self.pool.start()
        except ServerError as error:
            self.failure = error
            raise
        self.log({"level": "info", "note": f"{self.name} runs with {self.pool.names[1]}"})
        yield
        await self.pool.stop()

    async def live(self, _: Request) -> Response:
        """Say that the server runs."""
        return JSONResponse({"live": True})

    async def is_ready(self, request: Request) -> Response:
        """Say whether the server can classify now."""
        draining = getattr(request.scope.get("mlpconv.guard"), "draining", False)
        ready = self.pool.ready and not draining
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, _: Request) -> Response:
        """Name the server and its protocol extensions."""
        return JSONResponse({"name": "mlpconv", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model_metadata(self, _: Request) -> Response:
        """Describe the model's inputs and outputs, and its classes."""
        described = model_metadata(self.metadata, self.name)
        return JSONResponse(described | {"parameters": {"classes": list(self.metadata.classes)}})

    async def infer(self, request: Request) -> Response:
        """Answer a request of the Open Inference Protocol."""
        parsed = parse_request(await request.body(), request.headers.get(BINARY_HEADER), self.metadata)
        result = await self.pool.submit(Job(parsed.parts, parsed.outputs, parsed.images, parsed.shape))
        if result.errors:
            index, error = next(iter(result.errors.items()))
            raise Refusal(422, error["code"], f"Image {index}: {error['message']}")
        parts, json_length = response_body(self.name, parsed, result.outputs)
        if json_length is None:
            return Response(parts[0], media_type="application/json")
        headers = {BINARY_HEADER: str(json_length)}
        return Response(b"".join(parts), media_type="application/octet-stream", headers=headers)

    async def predict(self, request: Request) -> Response:
        """Classify the image in the body, or the images of a form."""
        files, result, top = await self._submitted(request, ("probabilities",))
        rows = iter(result.outputs["probabilities"])
        answers = [
            {"error": result.errors[index]} if index in result.errors else self._prediction(next(rows), top)
            for index in range(files)
        ]
        return JSONResponse({"model": self.name, "predictions": answers})

    async def maps(self, request: Request) -> Response:
        """Return the category maps of the most probable classes of the image, or of the images of a form."""
        if not self.metadata.has_maps:
            raise Refusal(422, "no_maps", "This network has no category maps: its head is fully connected.")
        files, result, top = await self._submitted(request, ("probabilities", "maps"))
        rows = zip(result.outputs["probabilities"], result.outputs["maps"], strict=True)
        answers: list[dict[str, Any]] = []
        for index in range(files):
            if index in result.errors:
                answers.append({"error": result.errors[index]})
                continue
            probabilities, maps = next(rows)
            answer = self._prediction(probabilities, top)
            for entry in answer["top"]:
                entry["map"] = maps[self.metadata.classes.index(entry["label"])].tolist()
            answers.append(answer)
        return JSONResponse({"model": self.name, "fit": self.metadata.decode_options.fit, "predictions": answers})

    async def _submitted(self, request: Request, outputs: tuple[str, ...]) -> tuple[int, Result, int]:
        """Return the number of images in a request, their outputs, and how many classes to name."""
        top = request.query_params.get("top", "3")
        if not (top.isascii() and top.isdigit() and 1 <= int(top[:5]) <= MAX_TOP):
            raise Refusal(400, "top", f"top is {top[:20]!r}; expected 1 to {MAX_TOP}.")
        files = files_of(await request.body(), request.headers.get("content-type", ""))
        result = await self.pool.submit(Job(list(files), outputs, len(files)))
        if len(result.errors) == len(files):
            error = result.errors[0]
            raise Refusal(422, error["code"], error["message"])
        return len(files), result, int(top)

    def _prediction(self, row: Any, top: int) -> dict[str, Any]:
        order = np.argsort(-row, kind="stable")[:top]
        entries = [{"label": self.metadata.classes[k], "confidence": float(row[k])} for k in order]
        return {**entries[0], "top": entries}

    async def metrics_text(self, _: Request) -> Response:
        """Return the metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        """Describe the routes as OpenAPI."""
        return JSONResponse(open_api(self.name, __version__))


def _threads(options: ServeOptions) -> int:
    from mlpconv.cores import CORES

    return max(1, CORES // options.workers)


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    """Return a handler that answers with a file of the package."""
    content = resources.files("mlpconv.deploy").joinpath("web", name).read_bytes()

    async def handler(_: Request) -> Response:
        return Response(content, media_type=kind)

    return handler


def serve_model(
    path: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    options: ServeOptions | None = None,
    limits: Limits | None = None,
    log: Log = log_to_stderr,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve an exported file until SIGTERM or Ctrl-C (see `serve_app`).

    Raises ExportError for a file that cannot be used, ServerError if the address is in use or the workers do not start.
    """
    server = ModelServer(path, options or ServeOptions(), log)
    try:
        serve_app(server.app, host, port, limits=limits, log=server.log, probes=PROBES, announce=announce)
    except ServerError as error:
        raise server.failure or error from None
