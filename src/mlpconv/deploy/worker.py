"""A worker process of the server: decodes images and runs the network, so that a crash ends only the worker.

    python -m mlpconv.deploy.worker MODEL ENGINE THREADS MAX_PIXELS FD

It reads messages from the socket FD and answers each with one message, until the socket closes.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpconv.data.decode import decode, header
from mlpconv.data.decode_threads import MAX_THREADS, in_threads
from mlpconv.deploy.predictor import Predictor
from mlpconv.deploy.wire import frame, receive
from mlpconv.errors import ExportError, ImageError, MlpconvError, UsageError

__all__ = ["main"]

SPARE_MEMORY = 2 << 30  # bytes of address space beyond what the loaded network has
IMAGE_MEMORY = 1 << 30  # more, for each image that is decoded beside another
Pixels = NDArray[np.uint8]
Decoded = Pixels | dict[str, str]  # an image, or why there is none


def main(arguments: list[str]) -> int:
    """Answer messages until the server closes the socket; return the exit code."""
    model, engine, threads, max_pixels, descriptor = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all processes; the server decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(descriptor))
    try:
        predictor = Predictor(Path(model), engine=engine, threads=int(threads))  # type: ignore[arg-type]
        predictor.probabilities(np.zeros((1, *predictor.input_size), np.uint8))
    except MlpconvError as error:
        _send(connection, {"failed": str(error)}, [])
        return 1
    decoders = min(MAX_THREADS, int(threads))
    _limit_memory(SPARE_MEMORY + (decoders - 1) * IMAGE_MEMORY)
    _send(connection, {"ready": True, "engine": predictor.engine, "choice": predictor.choice}, [])
    decode_file = partial(_decode, predictor, max_pixels=int(max_pixels))
    read = partial(in_threads, decode_file, threads=decoders)
    while (message := receive(connection)) is not None:
        _send(connection, *_answer(predictor, message[0]["jobs"], message[1], read))
    return 0


def _send(connection: socket.socket, answer: dict[str, Any], arrays: list[Any]) -> None:
    """Send a message in one system call: each one would wake the server."""
    connection.sendall(b"".join(frame(answer, [np.ascontiguousarray(array).tobytes() for array in arrays])))


def _limit_memory(spare: int) -> None:
    """Let an image that needs too much memory fail with MemoryError, instead of the whole machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(
    predictor: Predictor, jobs: list[dict[str, Any]], payload: memoryview, read: Callable[[list[bytes]], list[Decoded]]
) -> tuple[dict[str, Any], list[Any]]:
    """Return the answer to a batch of jobs: for each its outputs, or an error for each image."""
    start = time.perf_counter()
    images = _decoded(jobs, payload, read)
    decoded = time.perf_counter()
    results = _run(predictor, jobs, images)
    seconds = {"decode": decoded - start, "compute": time.perf_counter() - decoded}
    arrays = [array for result in results for array in result.pop("arrays")]
    return {"results": results, "seconds": seconds}, arrays


def _decoded(
    jobs: list[dict[str, Any]], payload: memoryview, read: Callable[[list[bytes]], list[Decoded]]
) -> list[list[Decoded]]:
    """Return the images of each job: those of its tensor, or its decoded files. All files are decoded together."""
    files: list[bytes] = []
    tensors: dict[int, list[Decoded]] = {}
    position = 0
    for index, job in enumerate(jobs):
        for size in job["sizes"]:
            part = payload[position : position + size]
            position += size
            if "shape" in job:
                tensors[index] = list(np.frombuffer(part, np.uint8).reshape(job["shape"]))
            else:
                files.append(bytes(part))
    pixels = iter(read(files))
    return [
        tensors[index] if index in tensors else list(islice(pixels, len(job["sizes"])))
        for index, job in enumerate(jobs)
    ]


def _decode(predictor: Predictor, content: bytes, *, max_pixels: int) -> Decoded:
    channels, height, width = predictor.input_size
    try:
        head = header(content)
        if head.height * head.width > max_pixels:
            size = f"{head.width:,} x {head.height:,} pixels"
            raise ImageError(f"The image has {size}; this server accepts up to {max_pixels:,}.")
        options = predictor.metadata.decode_options
        return decode(content, channels=channels, size=(height, width), decode_options=options)
    except ImageError as error:
        return {"code": "image", "message": _sentence(str(error))}
    except MemoryError:
        return {"code": "image", "message": "The image needs too much memory."}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _run(predictor: Predictor, jobs: list[dict[str, Any]], images: list[list[Decoded]]) -> list[dict[str, Any]]:
    """Run all images of one size together; return for each job the shapes and arrays of its outputs."""
    groups: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}
    for index, decoded in enumerate(images):
        for image in decoded:
            if not isinstance(image, dict):
                groups.setdefault(image.shape, []).append((index, image))
    rows: list[dict[str, list[Any]]] = [{name: [] for name in job["outputs"]} for job in jobs]
    errors: dict[int, str] = {}
    for group in groups.values():
        names = sorted({name for index, _ in group for name in jobs[index]["outputs"]})
        try:
            arrays = predictor.outputs(np.stack([image for _, image in group]), names)
        except (UsageError, ExportError, MemoryError) as error:
            errors |= {index: str(error) or "The images need too much memory." for index, _ in group}
            continue
        for row, (index, _) in enumerate(group):
            for name, array in zip(names, arrays, strict=True):
                if name in rows[index]:
                    rows[index][name].append(array[row])
    return [
        {"error": errors[index]} | {"arrays": []} if index in errors else _result(decoded, rows[index])
        for index, decoded in enumerate(images)
    ]


def _result(decoded: list[Decoded], rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the outputs of a job's readable images, and the errors of the others by their position."""
    problems = {str(index): image for index, image in enumerate(decoded) if isinstance(image, dict)}
    stacked = [np.stack(values) if values else np.empty((0,), np.float32) for values in rows.values()]
    return {"errors": problems, "shapes": [list(array.shape) for array in stacked], "arrays": stacked}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
