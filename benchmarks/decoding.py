"""Decode image files of four kinds one after the other and by the threads of `predict`, folders and the server.

    python benchmarks/decoding.py [--rounds 9]

The two ways take turns; wall-clock milliseconds per image of a group of 64 (8 of the largest), and the ratio of each
round. Writes results/decoding.json.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from common import spread, write_result
from PIL import Image

from mlpconv.data.decode import decode
from mlpconv.data.decode_threads import in_threads

KINDS = {  # format, height, width, and pixels of the side of the network's images
    "PNG, 32 x 32": ("PNG", 32, 32, 32),
    "PNG, 224 x 224": ("PNG", 224, 224, 224),
    "JPEG, 500 x 375": ("JPEG", 375, 500, 224),
    "JPEG, 4000 x 3000": ("JPEG", 3000, 4000, 224),
}
GROUP, LARGE_GROUP, LARGE_PIXELS = 64, 8, 1_000_000
BLOCK = 8  # pixels of an area of one random colour, smoothed


def encoded(kind: str, height: int, width: int) -> bytes:
    """Return a file of smooth random colours."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // BLOCK, width // BLOCK, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(stream, kind)
    return stream.getvalue()


def one_by_one(function: Callable[[bytes], Any], files: list[bytes]) -> list[Any]:
    """Decode files in one thread."""
    return [function(file) for file in files]


def milliseconds(way: Callable[..., Any], function: Callable[[bytes], Any], files: list[bytes]) -> float:
    """Return the wall-clock time per file."""
    start = time.perf_counter()
    way(function, files)
    return (time.perf_counter() - start) * 1e3 / len(files)


def main() -> None:
    """Measure all kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    result = {}
    for name, (kind, height, width, side) in KINDS.items():
        files = [encoded(kind, height, width)] * (LARGE_GROUP if height * width > LARGE_PIXELS else GROUP)
        function = partial(decode, channels=3, size=(side, side))
        in_threads(function, files)  # starts the threads
        times = [[milliseconds(way, function, files) for way in (one_by_one, in_threads)] for _ in range(rounds)]
        alone, threads = zip(*times, strict=True)
        result[name] = {
            "bytes": len(files[0]),
            "one_by_one_ms": round(median(alone), 3),
            "in_threads_ms": round(median(threads), 3),
            "ratio": spread([one / many for one, many in times]),
        }
        print(name, result[name], flush=True)
    write_result("decoding", result)


if __name__ == "__main__":
    main()
