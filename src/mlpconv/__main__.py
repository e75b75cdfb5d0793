"""Run the command line: `python -m mlpconv` is the same as `mlpconv`."""

from __future__ import annotations

import sys

__all__ = ["main"]

INTERRUPTED = 130  # as in mlpconv.cli, which is not imported yet when Ctrl-C comes early


def main() -> int:
    """Run the command line and return its exit code, also if Ctrl-C interrupts its import."""
    try:
        from mlpconv.cli import main as run
    except KeyboardInterrupt:
        return INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
