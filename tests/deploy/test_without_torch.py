"""A fresh environment with `mlpconv[serve]` has no torch, and predicts and serves (slow: it installs packages)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import request, running

import mlpconv

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_serve_extra_is_enough(digits_onnx: Path, tmp_path: Path) -> None:
    from PIL import Image

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", TOP / "constraints.txt", f"{TOP}[serve]"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode and "No matching distribution" in installed.stderr + installed.stdout:
        pytest.skip("no package index")
    assert installed.returncode == 0, installed.stderr
    listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"]))
    assert {"torch", "matplotlib", "onnx"}.isdisjoint(package["name"] for package in listed)
    image = tmp_path / "digit.png"
    Image.fromarray(mlpconv.open_data("digits").split("test").images[0, 0]).save(image)
    environment = {"PATH": "/usr/bin:/bin"}
    words = [python, "-m", "mlpconv", "predict", digits_onnx, image, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"] == mlpconv.load("digits").predict(image)[0].label
    with running([str(python), "-P", "-m", "mlpconv", "serve", str(digits_onnx), "--port", "0"], tmp_path) as served:
        assert request(served.port, "POST", "/predict", image.read_bytes()).status == 200
        assert served.stop() == 0
