"""Measure an environment with `mlpconv[serve]` only: its size, the start of `mlpconv predict`, and its memory.

    python benchmarks/without_torch.py        creates an environment in a temporary folder; needs a package index

Writes results/without_torch.json.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from common import measure, write_result
from PIL import Image

TOP = Path(__file__).resolve().parents[1]
RUNS = 9
ENGINE_ALONE = "import numpy, PIL.Image, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"


def main() -> None:
    """Create the environment, measure, and write the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        python = str(folder / "venv" / "bin" / "python")
        words = ["install", "--quiet", "--quiet", "--constraint", str(TOP / "constraints.txt"), f"{TOP}[serve]"]
        subprocess.run([sys.executable, "-m", "pip", "--python", python, *words], check=True)
        size = sum(path.stat().st_size for path in (folder / "venv").rglob("*") if path.is_file())
        model, photo = folder / "model.onnx", folder / "photo.png"
        words = ["export", "nin_cifar10", "--out", str(model)]  # not here: the peak of a child starts at its parent's
        subprocess.run([sys.executable, "-m", "mlpconv", *words], check=True, stdout=subprocess.DEVNULL)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photo)
        command = [python, "-m", "mlpconv", "predict", str(model), str(photo)]
        ours = [measure(command, cwd=folder) for _ in range(RUNS)]
        engine = [measure([python, "-c", ENGINE_ALONE, str(model)], cwd=folder) for _ in range(RUNS)]
        write_result("without_torch", {
            "environment_mb": size / 1e6,
            "predict_seconds": median(run.seconds for run in ours),
            "fastest_predict_seconds": min(run.seconds for run in ours),
            "predict_peak_mb": median(run.peak_bytes for run in ours) / 1e6,
            "engine_alone_seconds": median(run.seconds for run in engine),
            "engine_alone_peak_mb": median(run.peak_bytes for run in engine) / 1e6,
        })  # fmt: skip


if __name__ == "__main__":
    main()
