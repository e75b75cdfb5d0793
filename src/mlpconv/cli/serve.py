"""`mlpconv serve`: serve an exported model over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from mlpconv.cli.options import AnyModel, check_from_one, is_exported

__all__ = ["serve"]


def serve(
    model: AnyModel,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: Literal["auto", "onnxruntime", "openvino"] = "auto",
    workers: int = 1,
    threads: int | None = None,
    batch_size: int = 32,
    latency: float = 0.1,
    max_body: int | None = None,
    max_connections: int | None = None,
) -> None:
    """Serve a model over HTTP: the Open Inference Protocol, POST /predict and /maps with an image, and a start page.

    Ends with SIGTERM or Ctrl-C, after the requests in progress. A model file is exported first, which needs torch.

    Parameters
    ----------
    host
        The address to listen on. The default accepts connections from this machine only; 0.0.0.0 from everywhere.
    port
        The port; 0 chooses a free one.
    engine
        What runs the network: auto takes the faster one of those installed.
    workers
        Processes that decode images and run the network.
    threads
        Threads of each worker. Default: the cores divided by the workers.
    batch_size
        Maximum number of images in a batch.
    latency
        Maximum expected wait for a worker, in seconds; a request that would wait longer is refused with 503.
    max_body
        Maximum size of a request body, in bytes. Default: 16 MiB.
    max_connections
        Maximum number of open connections. Default: 512.
    """
    from mlpconv.deploy.limits import Limits
    from mlpconv.deploy.server import ServeOptions, serve_model

    optional = {"threads": threads, "max_body": max_body, "max_connections": max_connections}
    counts = {name: value for name, value in optional.items() if value is not None}
    check_from_one(workers=workers, batch_size=batch_size, **counts)
    given = {"body_bytes": max_body, "connections": max_connections}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    options = ServeOptions(Path(model).stem, engine, workers, threads, batch_size, latency)
    if is_exported(model):
        serve_model(Path(model), host, port, options=options, limits=limits, announce=_announce)
        return
    from tempfile import TemporaryDirectory

    from mlpconv.deploy.exporting import export
    from mlpconv.deploy.serving import listen

    listen(host, port, 1).close()  # an address that cannot be used is known before the export
    with TemporaryDirectory(prefix="mlpconv-") as folder:
        path = export(model, Path(folder) / "model.onnx").path
        serve_model(path, host, port, options=options, limits=limits, announce=_announce)


def _announce(url: str) -> None:
    """Print the address; tests and scripts wait for this line."""
    print(f"Serving on {url} (Ctrl-C stops)")
    sys.stdout.flush()
