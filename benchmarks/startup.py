"""Start-up time: `import mlpconv` (beyond bare Python) and `mlpconv --help`.

Limits: 50 ms for the import, 0.3 s for the help. Exits with code 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
import sys

from common import measure, spread, write_result

IMPORT_LIMIT, HELP_LIMIT = 0.050, 0.300
BARE = [sys.executable, "-c", "pass"]
IMPORT = [sys.executable, "-c", "import mlpconv"]
HELP = [sys.executable, "-m", "mlpconv", "--help"]


def main() -> int:
    """Measure the commands alternately, so that slow periods of the machine affect all; write results/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    for command in (BARE, IMPORT, HELP):  # warm-up: fills the file cache, writes byte code
        measure(command)
    rows = [(measure(BARE).seconds, measure(IMPORT).seconds, measure(HELP).seconds) for _ in range(repeats)]
    over_bare = spread([import_time - bare for bare, import_time, _ in rows])
    help_time = spread([seconds for _, _, seconds in rows])
    path = write_result("startup", {"import_over_bare_python_s": over_bare, "help_s": help_time})
    print(f"import mlpconv   {over_bare['mean'] * 1e3:6.1f} ms  (sd {over_bare['sd'] * 1e3:.1f}, n = {repeats})")
    print(f"mlpconv --help   {help_time['mean'] * 1e3:6.0f} ms  (sd {help_time['sd'] * 1e3:.0f}, n = {repeats})")
    print(f"written to {path}")
    return int(over_bare["mean"] >= IMPORT_LIMIT or help_time["mean"] >= HELP_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
