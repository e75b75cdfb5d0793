"""Run the command line: `python -m mlpconv` is the same as `mlpconv`."""

from __future__ import annotations

import sys

from mlpconv.cli import main

sys.exit(main())
