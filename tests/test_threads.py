"""A classifier works after fork and pickle, and loading it starts no threads."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mlpconv
from mlpconv.threads import one_thread

FORKED = """
import os, signal, sys, time
import numpy as np, torch
import mlpconv
signal.alarm(300)  # a watchdog against hanging
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
classifier = mlpconv.load("nin_cifar10")
after = len(os.listdir("/proc/self/task")) if before else 0
pixels = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, 3, 32, 32)
assert torch.get_num_threads() == 2
if sys.argv[1] == "predict":
    parent = classifier.predict(pixels, precision="fp32").probabilities
child = os.fork()
if child == 0:
    signal.alarm(150)
    answer = classifier.predict(pixels, precision="fp32").probabilities
    if sys.argv[1] == "predict":
        assert torch.get_num_threads() == 1
        np.testing.assert_allclose(answer, parent, rtol=1e-4, atol=1e-6)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert after == before, (before, after)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("parent", ["load", "predict"])
def test_a_forked_child_predicts(parent: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(mlpconv.__file__).parents[1])}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, parent], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_number_of_threads_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="stop"), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("stop")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("send", [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy], ids=["pickle", "copy"])
def test_a_classifier_can_be_pickled_after_predicting(send: object) -> None:
    classifier = mlpconv.load("nin_cifar10")
    pixels = np.random.default_rng(5).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    expected = classifier.predict(pixels, precision="fp32").probabilities
    assert classifier._dispatcher is not None
    sent = send(classifier)  # type: ignore[operator]
    assert sent._dispatcher is None and classifier._dispatcher is not None
    np.testing.assert_array_equal(sent.predict(pixels, precision="fp32").probabilities, expected)
