"""Peak memory of training: `python benchmarks/memory.py cifar10 --set epochs=1`.

All arguments are passed to `mlpconv train`; the run folder is temporary. Writes results/memory-NAME.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import measure, write_result


def main() -> int:
    """Train once in a separate process and write its peak memory."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(f"usage: {__doc__.splitlines()[0]}", file=sys.stderr)
        return 2
    data, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlpconv", "train", data, *options, "--out", str(Path(folder) / "run")]
        measured = measure(command)
    path = write_result(f"memory-{Path(data).name}", {"peak_bytes": measured.peak_bytes, "seconds": measured.seconds})
    print(f"peak memory {measured.peak_bytes / 1e6:.0f} MB over {measured.seconds:.1f} s; written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
