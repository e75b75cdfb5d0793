"""`mlpconv claims`: claims about 1x1 convolutions, run as experiments with a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from mlpconv.cli.options import Switch, check_can_be_written

if TYPE_CHECKING:
    from mlpconv.claims.claim_files import ClaimFile
    from mlpconv.claims.results import Judged
    from mlpconv.claims.runner import RunSettings

__all__ = ["app"]

app = App(name="claims", help="Test what is said about 1x1 convolutions: experiments with a verdict.")
RESULTS = Path("runs/claims")
Data = Annotated[tuple[str, ...], Parameter(negative_iterable=(), consume_multiple=True)]
Claims = Annotated[tuple[str, ...], Parameter(negative_iterable=())]


@app.command(name="list")
def list_(*, out: Path = RESULTS, json: Switch = False) -> None:
    """List the claims, with their verdicts where there are results.

    Parameters
    ----------
    out
        The folder of the results.
    json
        Print a JSON list with one object per claim.
    """
    from mlpconv.claims.claim_files import list_claims
    from mlpconv.claims.results import judge_all

    _print_verdicts(judge_all(list_claims(), out), json)


@app.command
def run(
    names: Claims = (),
    /,
    *,
    data: Data = (),
    quick: Switch = False,
    seeds: int | None = None,
    workers: int | None = None,
    out: Path = RESULTS,
    json: Switch = False,
) -> None:
    """Run claims: prove the exact ones, train the networks of the measured ones. Finished runs are kept and reused.

    Parameters
    ----------
    names
        Names or numbers of claims, or Python files with a claim of your own. Default: all claims.
    data
        Data sets: digits, mnist, cifar10. Default: those that are available.
    quick
        Use the digits only: all claims take about twenty CPU minutes.
    seeds
        Paired runs per network, at least 3; 10 for a verdict other than "indicated". Default: 12.
    workers
        Processes. Default: one per core. The results do not depend on it.
    out
        The folder of the results.
    json
        Print a JSON list with one object per claim.
    """

    from mlpconv.claims.claim_files import check_unique, find_claim, list_claims
    from mlpconv.claims.results import judge_all
    from mlpconv.claims.runner import SEEDS, RunSettings, count_steps, run_claims
    from mlpconv.cli.bar import Bar
    from mlpconv.cores import CORES

    files = [find_claim(name) for name in names] or list(list_claims())
    everything = [*list_claims(), *(file for file in files if file not in list_claims())]
    check_unique(everything)
    settings = RunSettings(
        out, _data_sets(data, quick), SEEDS if seeds is None else seeds, CORES if workers is None else workers
    )
    if not data and not quick:
        _name_missing(settings.data)
    with Bar("claims", count_steps(files, settings)) as bar:
        run_claims(files, settings, bar, _note)
    wanted = {file.claim.name for file in files}
    _print_verdicts([judged for judged in judge_all(everything, out) if judged.file.claim.name in wanted], json)
    if not json:
        _print_details(files, judge_all(everything, out), settings)


@app.command
def time(names: Claims, /, *, data: Data = (), rounds: int = 40, out: Path = RESULTS) -> None:
    """Time the networks of claims that have results: inference and a training step, in turn, in one thread.

    Parameters
    ----------
    names
        Names or numbers of claims, or Python files with a claim of your own.
    data
        Data sets: digits, mnist, cifar10. Default: those with a result.
    rounds
        How often every network is timed.
    out
        The folder of the results; the times are stored there, and `mlpconv claims report` draws them.
    """
    from mlpconv.claims.claim_files import find_claim
    from mlpconv.claims.results import result_path
    from mlpconv.claims.timing import measure_times, time_lines
    from mlpconv.cli.bar import Bar

    files = [find_claim(name) for name in names]
    for file in files:
        stored = [name for name in file.claim.data if result_path(out, name, file.claim.name).is_file()]
        for chosen in _data_sets(data, quick=False) if data else stored or file.claim.data[:1]:
            with Bar("rounds", rounds + 1) as bar:
                times = measure_times(file, chosen, out, rounds, bar)
            print(*time_lines(file, chosen, times), sep="\n")


@app.command
def report(names: Claims = (), /, *, out: Path = RESULTS, html: Path | None = None) -> None:
    """Write the report: one HTML page with every claim, its verdict, and a figure.

    Parameters
    ----------
    names
        Names or numbers of claims, or Python files with a claim of your own, to add to those of the package.
    out
        The folder of the results.
    html
        The file to write. Default: report.html in that folder.
    """
    from mlpconv.claims.claim_files import check_unique, find_claim, list_claims
    from mlpconv.claims.report import html_report
    from mlpconv.claims.results import judge_all
    from mlpconv.errors import UsageError
    from mlpconv.files import write_atomic

    if not out.is_dir():
        raise UsageError(f"There are no results in {str(out)!r}: `mlpconv claims run --quick` makes them in minutes.")
    target = html if html is not None else out / "report.html"
    check_can_be_written(html=target)
    own = [file for name in names if (file := find_claim(name)) not in list_claims()]
    files = [*list_claims(), *own]
    check_unique(files)
    write_atomic(target, html_report(judge_all(files, out)).encode())
    print(f"Written: {target}")


@app.command
def predictions(
    name: str, /, *, data: str = "digits", out: Path = RESULTS, csv: Path | None = None, json: Switch = False
) -> None:
    """Print or write the predicted class of every test image in every run of a claim.

    Parameters
    ----------
    name
        The name or number of a claim.
    data
        digits, mnist or cifar10.
    out
        The folder of the results.
    csv
        Write one row per arm, seed and image to this file: arm, seed, image, label, prediction.
    json
        Print one JSON object: labels, and predictions by arm and seed.
    """
    from mlpconv.claims.claim_files import find_claim
    from mlpconv.claims.results import predictions_csv, read_predictions
    from mlpconv.claims.schema import BUDGETS
    from mlpconv.errors import UsageError, did_you_mean
    from mlpconv.files import write_atomic
    from mlpconv.text import counted

    if data not in BUDGETS:
        raise UsageError(f"--data is {data!r}; {did_you_mean(data, BUDGETS)}")
    check_can_be_written(csv=csv)
    labels, arms, predicted = read_predictions(out, data, find_claim(name))
    if csv is not None:
        write_atomic(csv, predictions_csv(labels, arms, predicted))
        print(f"Written: {csv}")
    if json:
        _print_json(
            {"labels": labels.tolist(), "predictions": {arm: predicted[i].tolist() for i, arm in enumerate(arms)}}
        )
    elif csv is None:
        for index, arm in enumerate(arms):
            wrong = (predicted[index] != labels).mean(1) * 100
            size = f"{counted(len(wrong), 'run')} of {counted(len(labels), 'image')}"
            print(f"{arm}: {size}, error {wrong.mean():.2f} % (mean)")
        print("--csv FILE writes every prediction.")


def _data_sets(data: tuple[str, ...], quick: bool) -> tuple[str, ...]:
    """Return the data sets to measure on; by default those whose files are available."""
    from mlpconv.claims.budget import available
    from mlpconv.claims.schema import BUDGETS
    from mlpconv.errors import UsageError, did_you_mean

    if quick and data:
        raise UsageError("--quick measures on the digits only: give either --quick or --data.")
    for name in data:
        if name not in BUDGETS:
            raise UsageError(f"--data is {name!r}; {did_you_mean(name, BUDGETS)}")
    if quick:
        return ("digits",)
    if data:
        return tuple(dict.fromkeys(data))
    return tuple(name for name in BUDGETS if available(name))


def _name_missing(chosen: tuple[str, ...]) -> None:
    """Note each data set that is not measured on."""
    from mlpconv.claims.schema import BUDGETS

    for name in BUDGETS:
        if name not in chosen:
            _note(f"{name} is left out: its files are missing. `mlpconv data prepare {name}` downloads them.")


def _note(text: str) -> None:
    import sys

    print(f"mlpconv: {text}", file=sys.stderr)


def _print_json(value: Any) -> None:
    import sys

    from mlpconv.files import json_bytes

    sys.stdout.write(json_bytes(value).decode())


def _print_verdicts(claims: list[Judged], json: bool) -> None:
    """Print the verdict on each claim as a table or as JSON."""
    from mlpconv.claims.report import sentence, verdict_of
    from mlpconv.claims.schema import BUDGETS

    columns = ("exact", *BUDGETS)
    if json:
        _print_json([
            judged.file.claim.to_dict()
            | {"verdicts": {data: word for data in columns if (word := verdict_of(judged, data))}}
            | {"checks": judged.exact["checks"] if judged.exact else []}
            | {"findings": {d: {f.comparison.name: sentence(f) for f in fs} for d, fs in judged.findings.items()}}
            for judged in claims
        ])  # fmt: skip
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "name", "claim", *columns):
        table.add_column(
            heading, justify="right" if not heading else "left", overflow="fold", no_wrap=heading == "name"
        )
    for judged in claims:
        claim = judged.file.claim
        cells = (str(claim.number or ""), claim.name, claim.title, *(verdict_of(judged, data) for data in columns))
        table.add_row(*map(Text, cells))
    open_console().print(table)


def _print_details(files: list[ClaimFile], claims: list[Judged], settings: RunSettings) -> None:
    """Print the bounds of the checks and what each comparison found."""
    from mlpconv.claims.report import sentence
    from mlpconv.text import counted, shell_path

    names = [file.claim.name for file in files]
    for judged in (judged for judged in claims if judged.file.claim.name in names):
        for check in judged.exact["checks"] if judged.exact else ():
            cases = counted(check["cases"], "case")
            print(f"{judged.file.claim.name}: {check['statement']}: {cases}, largest deviation "
                  f"{check['worst']:.1e}, bound {check['bound']:.0e}")  # fmt: skip
        for data in settings.data:
            for finding in judged.findings.get(data, ()):
                print(f"{judged.file.claim.name}, {data}: {finding.comparison.name}: {sentence(finding)}")
    own = "".join(f" {file.argument}" for file in files if file.claim.number is None)
    out = shell_path(settings.out)
    print(f"Results: {out}. `mlpconv claims report{own} --out {out}` writes the page.")
