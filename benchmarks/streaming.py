"""Streaming from tar shards: memory, the time to any batch, and the cost beside decoding.

    python benchmarks/streaming.py

Writes 10,000 JPEG images of 64 x 64 pixels into one tar, and opens it once and 100 times (as links), which counts as
10,000 and 1,000,000 images. Writes results/streaming.json.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from PIL import Image

IMAGES, SIDE, BATCH, TIMED = 10_000, 64, 128, 4096


def write_shard(path: Path) -> None:
    """Write a tar of smooth random images of ten classes."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(IMAGES):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            content = io.BytesIO()
            coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(content, "jpeg", quality=90)
            member = tarfile.TarInfo(f"class{number % 10}/{number:06d}.jpg")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))


def open_streamed(folder: str) -> Any:
    """Return the streamed training split of a folder of shards."""
    from mlpconv.data import open_data
    from mlpconv.data.shards import memory_limit

    with memory_limit(0):
        return open_data(folder, val_fraction=0).split("train")


def inspect(folder: str) -> dict[str, float]:
    """Return memory after opening and 50 random batches, and the seconds to the first batch at nine tenths."""
    import torch

    from mlpconv.data.sampler import Sampler
    from mlpconv.preprocessing import Preprocessing
    from mlpconv.training import Recipe
    from mlpconv.training.step import BatchLoader

    split = open_streamed(folder)
    sampler = Sampler(len(split), BATCH, 0)
    preprocessing = Preprocessing(("scale",), 3, split.images.shape[2:])
    start = time.perf_counter()
    loader = BatchLoader(split, preprocessing, Recipe(), sampler, sampler.steps_per_epoch, torch.device("cpu"))
    loader(int(0.9 * sampler.steps_per_epoch))
    first = time.perf_counter() - start
    for step in range(50):
        loader(step * sampler.steps_per_epoch // 50)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    return {"images": len(split), "first_batch_s": first, "peak_mb": peak / 1e6, "resident_mb": resident / 1e6}


def rates(folder: str) -> dict[str, float]:
    """Return images per CPU second of the bare decoder and of streamed batches, over the same images, three times."""
    from mlpconv.data.decode import decode

    split = open_streamed(folder)
    images, rows = split.images, np.random.default_rng(1).permutation(len(split))[:TIMED]
    contents = [images.content(row) for row in rows.tolist()]
    images[rows[:BATCH]]
    seconds: dict[str, list[float]] = {"bare": [], "streamed": []}
    for _ in range(3):
        start = time.process_time()
        for content in contents:
            decode(content, channels=3, size=(SIDE, SIDE))
        seconds["bare"].append(time.process_time() - start)
        start = time.process_time()
        for batch in np.split(rows, TIMED // BATCH):
            images[batch]
        seconds["streamed"].append(time.process_time() - start)
    return {name: TIMED / min(values) for name, values in seconds.items()}


def main() -> int:
    """Measure in separate processes, and write the result."""
    if len(sys.argv) == 3:
        print(json.dumps((inspect if sys.argv[1] == "inspect" else rates)(sys.argv[2])))
        return 0
    with tempfile.TemporaryDirectory() as top:
        os.environ["MLPCONV_DATA"] = str(Path(top, "cache"))
        shard = Path(top, "one", "000.tar")
        shard.parent.mkdir()
        write_shard(shard)
        many = Path(top, "many")
        many.mkdir()
        for number in range(100):
            (many / f"{number:03d}.tar").symlink_to(shard)
        result: dict[str, Any] = {}
        for name, folder in (("index", shard.parent), ("small", shard.parent), ("large", many)):
            start = time.perf_counter()
            result[name] = run("inspect", folder) | {"seconds": time.perf_counter() - start}
        result["rates"] = run("rates", shard.parent)
    print(json.dumps(result, indent=2))
    print(f"written to {write_result('streaming', result)}")
    return 0


def run(what: str, folder: Path) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, what, str(folder)], capture_output=True, text=True, check=True)
    value: dict[str, float] = json.loads(done.stdout)
    return value


if __name__ == "__main__":
    sys.exit(main())
