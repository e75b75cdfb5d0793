"""`mlpconv search`: search recipe settings for networks of low error and low cost."""

from __future__ import annotations

import json as json_format
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import DataDir, Switch, check_data_dir, check_from_one
from mlpconv.cli.train import merge_settings
from mlpconv.errors import UsageError
from mlpconv.text import Wording, shell_path, shell_word, worded

if TYPE_CHECKING:
    from mlpconv.search import SearchResult

__all__ = ["search"]

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
MAX_ROWS = 20


Over = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True,
        help="Searched settings: --over width=0.25..2 depth=1..3 kernel=3,5. An unknown name lists all of them.",
    ),
]
Budget = Annotated[
    str | None,
    Parameter(help="Time for this process: 90s, 30m, 2h or 1d. Unfinished trials continue in the next call."),
]
Shared = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", consume_multiple=True, help="Settings that all trials share: --set batch_size=64 flip=random."
    ),
]
MaxMacs = Annotated[
    str | None,
    Parameter(help="Most multiply-adds of a network for one image, such as 50M; costlier networks are not trained."),
]
MaxParameters = Annotated[str | None, Parameter(help="Most parameters of a network, such as 500k.")]


def search(
    data: str,
    /,
    *,
    over: Over,
    budget: Budget = None,
    trials: int | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    set_: Shared = (),
    max_macs: MaxMacs = None,
    max_parameters: MaxParameters = None,
    out: Path | None = None,
    store: str | None = None,
    no_pruning: Switch = False,
    data_dir: DataDir = None,
    json: Switch = False,
) -> None:
    """Search recipe settings, and find the networks of lowest error for each cost: the Pareto front.

    Every trial is a training run. Run the same command in more terminals, or on more machines that share the folder, to
    work on the same search. A trial that was interrupted continues where it stopped.

    Parameters
    ----------
    data
        A named data set or a folder, as for `mlpconv train`.
    trials
        Number of trials of the search, those of all processes together.
    recipe
        Recipe that all trials start from: fast (the default), best, paper, or a JSON file.
    epochs
        Number of epochs of a trial; overrides epochs and min_steps of the recipe.
    out
        Folder of the search; default searches/NAME. A search in it is continued.
    store
        URL of a database server for the trials, instead of a journal file in the folder.
    no_pruning
        Train every trial to the end, also those that fall behind.
    json
        Print the result as one JSON object.
    """
    settings = merge_settings(set_, epochs=epochs)
    check_data_dir(data_dir, data)
    if trials is not None:
        check_from_one(trials=trials)
    options: dict[str, Any] = {"recipe": recipe, "out": out, "trials": trials, "store": store, "data_root": data_dir}
    options |= {"seconds": None if budget is None else duration(budget), "prune": not no_pruning}
    limits = count("max-macs", max_macs), count("max-parameters", max_parameters)
    result = run(data, over, limits, json, options | settings)
    if json:
        print(json_format.dumps(result.to_dict()))
    else:
        print_result(result, data)


def run(
    data: str, over: tuple[str, ...], limits: tuple[int | None, int | None], to_stderr: bool, options: dict[str, Any]
) -> SearchResult:
    """Run the search; print a line for every trial."""
    from mlpconv.search import CostLimits, run_search

    def log(text: str) -> None:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)

    with worded(SearchLine()):
        return run_search(data, over, limits=CostLimits(*limits), log=log, **options)


class SearchLine(Wording):
    """Write messages with the options of `mlpconv search`."""

    def option(self, name: str, value: object) -> str:
        """Return an option of the command line, or a setting of the recipe."""
        options = ("out", "budget", "trials", "recipe", "epochs", "store")
        words = shell_path(value) if isinstance(value, str) else shell_word(str(value))
        return f"--{name} {words}" if name in options else f"--set {shell_word(f'{name}={value}')}"


def duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 30m, 2h or 1.5d; raise UsageError for anything else."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|min|h|d)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget is {text!r}; expected a duration such as 90s, 30m, 2h or 1d.")
    return float(match[1]) * SECONDS[match[2]]


def count(name: str, text: str | None) -> int | None:
    """Return a number such as 500k, 50M or 1.5G; raise UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]?)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--{name} is {text!r}; expected a number such as 500k, 50M or 1.5G.")
    return round(float(match[1]) * FACTORS[match[2]])


def print_result(result: SearchResult, data: str) -> None:
    """Print the Pareto front as a table, the importance of each setting, and the next commands."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console, say, say_table

    console = open_console()
    counts = ", ".join(f"{number:,} {state}" for state, number in result.counts().items())
    if result.best is None:
        say(console, f"no trial is complete yet ({counts or 'none has started'}): run the same command to continue.")
        return
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("trial", "error", "multiply-adds", "parameters", *result.best.settings):
        grid.add_column(heading, justify="right")
    for row in result.front[-MAX_ROWS:]:
        cells = (str(row.number), f"{row.error or 0:.2%}", f"{row.macs:,}", f"{row.parameters:,}")
        grid.add_row(*(Text(cell) for cell in (*cells, *(shown(value) for value in row.settings.values()))))
    say_table(console, grid, f"Pareto front of {counts}")
    if result.importance:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.items())
        say(console, f"importance for a low error: {listed}")
    say(console, f"results in {shell_path(result.folder)}: pareto.png, trials.csv, recipes/")
    recipe = shell_word(f"best-of:{result.folder}")
    say(console, f"  train the best   mlpconv train {shell_path(data)} --recipe {recipe}")


def shown(value: Any) -> str:
    """Return a setting as it is written on the command line."""
    return value if isinstance(value, str) else json_format.dumps(value)
