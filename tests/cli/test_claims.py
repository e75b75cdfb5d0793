"""`mlpconv claims`: list, run, time, report, predictions, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from support.claim_results import write_result

from mlpconv.claims import trial, workers
from mlpconv.claims.claim_files import find_claim
from mlpconv.claims.results import judge_all
from mlpconv.claims.runner import RunSettings
from mlpconv.cli import main
from mlpconv.cli.claims import _print_details

SMALL = '''
"""A claim of my own."""

from mlpconv.claims import Arm, Claim, Comparison

CLAIM = Claim(
    name="my-claim", title="Eight beat two", words="More is better.", source="A colleague", method="Two networks.",
    overturn="A data set.", arms={"eight": Arm("3x3:8 max 1x1:K gap"), "two": Arm("3x3:2 max 1x1:K gap")},
    comparisons=(Comparison("eight, against two", "eight", "two", "lower", {"digits": 2.0}),), data=("digits",),
)
'''


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace training by a made-up error that depends on the width."""

    def made_up(run: trial.ClaimRun, measure: object) -> trial.Measured:
        error = (10.0 if run.words.startswith("3x3:8") else 20.0) + 0.1 * run.seed
        return trial.Measured({"error": error, "train_error": 0.0, "gap": error}, np.full(359, 3, np.uint8), 1.0)

    monkeypatch.setattr(workers, "run_trial", made_up)


def test_list_names_all_claims_and_their_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(tmp_path, find_claim("dropout"), "digits", 4.0)
    assert main(["claims", "list", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in rows] == list(range(1, 24))
    verdicts = {row["name"]: row["verdicts"] for row in rows}
    assert verdicts["dropout"] == {"digits": "refuted", "mnist": "not run", "cifar10": "not run"}
    assert verdicts["cost"] == {"exact": "not run"}
    assert main(["claims", "list", "--out", str(tmp_path)]) == 0
    assert "refuted" in capsys.readouterr().out


def test_an_exact_claim_is_proved_with_its_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "run", "9", "--quick", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "proved" in out
    assert "1,000 cases, largest deviation" in out
    assert "bound 1e-12" in out


@pytest.mark.usefixtures("untrained")
def test_a_claim_of_ones_own_runs_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "results"
    path.write_text(SMALL)
    command = ["claims", "run", str(path), "--quick", "--workers", "1", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdicts"] == {"digits": "supported"}
    assert "n = 12" in row["findings"]["digits"]["eight, against two"]
    assert main([*command, "--seeds", "9"]) == 0
    assert "indicated" in capsys.readouterr().out
    assert main(["claims", "report", str(path), "--out", str(out)]) == 0
    assert "Eight beat two" in (out / "report.html").read_text()
    assert main(["claims", "predictions", str(path), "--out", str(out), "--csv", str(tmp_path / "p.csv")]) == 0
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 9 * 359
    assert {row["arm"] for row in rows} == {"eight", "two"}
    assert {row["prediction"] for row in rows} == {"3"}
    capsys.readouterr()
    assert main(["claims", "predictions", str(path), "--out", str(out), "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert np.array(stored["predictions"]["two"]).shape == (9, 359)


def test_a_single_case_is_not_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = find_claim("inception")
    (tmp_path / "exact").mkdir()
    check = {"statement": "one count", "cases": 1, "bound": 0, "worst": 0.0}
    stored = {"claim": "inception", "hypothesis": file.hypothesis, "checks": [check]}
    (tmp_path / "exact" / "inception.json").write_text(json.dumps(stored))
    _print_details([file], judge_all([file], tmp_path), RunSettings(tmp_path, ()))
    assert "inception: one count: 1 case, largest deviation" in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
def test_the_networks_of_a_claim_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "results"
    path.write_text(SMALL)
    assert main(["claims", "run", str(path), "--quick", "--workers", "1", "--seeds", "3", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["claims", "time", str(path), "--rounds", "3", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["eight", "two"]
    assert all("ms (64 images, 3 rounds)" in line for line in lines)
    assert main(["claims", "report", str(path), "--out", str(out)]) == 0
    assert "against measured time" in (out / "report.html").read_text()


BAD = {
    "an unknown claim": (["run", "dropuot"], "did you mean 'dropout'", 2),
    "an unknown data set": (["run", "9", "--data", "cifar"], "did you mean 'cifar10'", 2),
    "too few seeds": (["run", "10", "--seeds", "2"], "too few for a verdict", 2),
    "no workers": (["run", "10", "--workers", "0"], "workers is 0", 2),
    "quick and data": (["run", "--quick", "--data", "mnist"], "give either --quick or --data", 2),
    "no results": (["report", "--out", "nowhere"], "claims run --quick", 2),
    "no predictions": (["predictions", "10", "--out", "nowhere"], "mlpconv claims run mlpconv --data digits", 2),
    "predictions of an unknown data set": (["predictions", "10", "--data", "svhn"], "--data is 'svhn'", 2),
    "times without a result": (["time", "10", "--data", "digits", "--out", "nowhere"], "claims run mlpconv --data", 2),
    "times of a claim without networks": (["time", "cost", "--out", "nowhere"], "has no networks on digits", 2),
    "times of a data set that is not measured": (["time", "21", "--data", "cifar10"], "accepted: digits, mnist", 2),
    "too few rounds": (["time", "10", "--rounds", "2"], "--rounds is 2; at least 3", 2),
    "a missing file": (["run", "nowhere.py"], "is not a file", 2),
}


@pytest.mark.parametrize(("words", "message", "code"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(
    words: list[str], message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["claims", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untrained")
def test_a_data_set_without_files_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    out = tmp_path / "results"
    assert main(["claims", "run", "10", "--workers", "1", "--seeds", "3", "--out", str(out)]) == 0
    error = capsys.readouterr().err
    assert "mnist is left out" in error
    assert "mlpconv data prepare cifar10" in error
    assert sorted(path.name for path in out.iterdir()) == ["digits", "runs"]


@pytest.mark.usefixtures("untrained")
def test_ctrl_c_keeps_the_runs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up, count = workers.run_trial, []

    def interrupted(*words: object) -> object:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return made_up(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "run_trial", interrupted)
    words = ["claims", "run", "10", "--quick", "--workers", "1", "--seeds", "3", "--out", str(tmp_path)]
    assert main(words) == 130
    assert "interrupted after 3 runs, kept in" in capsys.readouterr().err
    assert main(words) == 0
    assert "undecided" in capsys.readouterr().out
    assert len(count) == 1 + 3 * (9 + 3)
