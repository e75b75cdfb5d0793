"""The number of cores is that of this process, not of the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_a_process_that_is_bound_to_one_core_has_one():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from mlpconv.cores import CORES; "
        "print(CORES)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"
