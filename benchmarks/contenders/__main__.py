"""Run one contender in this process: `python -m contenders NAME SETTINGS-AS-JSON`; commands and answers use pipes."""

from __future__ import annotations

import importlib
import os
import sys

from contenders import CONTENDERS, Settings
from contenders.rounds import Over, Rounds


def main() -> int:
    """Warm up, report readiness and run a round for each command until the pipe is closed."""
    contender, settings = CONTENDERS[sys.argv[1]], Settings.from_json(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the output of libraries out of the answers
    module, function = contender.call.split(".")
    run = getattr(importlib.import_module(f"contenders.{module}"), function)
    rounds = Rounds(sys.stdin, answers, settings.seconds)
    try:
        run(rounds, settings, **contender.options)
    except Over:
        return 0
    except ImportError as error:
        rounds.answer({"unavailable": f"{error.name or error} is not installed"})
        return 0
    except Exception as error:  # noqa: BLE001 (the other contenders continue; the result records the error)
        rounds.answer({"unavailable": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]:.300}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
