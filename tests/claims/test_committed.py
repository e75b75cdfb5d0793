"""The committed results: each has the registered hypothesis of its claim, and none is older than it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from mlpconv.claims.claim_files import find_claim, list_claims
from mlpconv.claims.figures import filter_panels
from mlpconv.claims.results import judge_all, read_predictions
from mlpconv.claims.schema import TITLES

TOP = Path(__file__).resolve().parents[2]
FOLDER = TOP / "benchmarks" / "results" / "claims"
REGISTER = FOLDER / "hypotheses.json"
RESULTS = sorted(path for path in FOLDER.glob("*/*.json") if path.parent.name != "runs")
MEASURED = [path for path in RESULTS if path.parent.name != "exact"]
TIMES = sorted((FOLDER / "times").glob("*/*.json"))
MEGABYTES = 20


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def problems(result: dict[str, str], register: dict[str, dict[str, str]]) -> list[str]:
    """What is wrong with the hypothesis of a result."""
    entry = register.get(result["claim"])
    if entry is None:
        return ["the claim is not registered"]
    wrong = []
    if entry["sha256"] != result["hypothesis"]:
        wrong.append("the result has another hypothesis than the one registered")
    if datetime.fromisoformat(result["measured_at"]) < datetime.fromisoformat(entry["registered_at"]):
        wrong.append("the result is older than its hypothesis")
    return wrong


def test_every_claim_is_registered_with_the_hash_of_its_file() -> None:
    register = json.loads(REGISTER.read_text())
    assert {file.claim.name: file.hypothesis for file in list_claims()} == {
        name: entry["sha256"] for name, entry in register.items()
    }


@pytest.mark.parametrize("path", RESULTS, ids=name_of)
def test_no_result_is_older_than_its_hypothesis(path: Path) -> None:
    assert problems(json.loads(path.read_text()), json.loads(REGISTER.read_text())) == []


def test_another_hypothesis_and_an_older_result_are_found() -> None:
    register = {"a": {"sha256": "1", "registered_at": "2026-02-02T00:00:00Z"}}
    result = {"claim": "a", "hypothesis": "1", "measured_at": "2026-02-03T00:00:00Z"}
    assert problems(result, register) == []
    assert problems(result | {"claim": "b"}, register) == ["the claim is not registered"]
    assert len(problems(result | {"hypothesis": "2", "measured_at": "2026-02-01T00:00:00Z"}, register)) == 2


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=TOP, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def test_each_result_was_committed_after_its_hypothesis() -> None:
    if shutil.which("git") is None or git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("needs git and the whole history")
    order = {commit: index for index, commit in enumerate(git("rev-list", "--topo-order", "--reverse", "HEAD").split())}
    register = json.loads(REGISTER.read_text())
    registered = {}
    for name, entry in register.items():
        commits = git("log", "--format=%H", "-S", entry["sha256"], "--", str(REGISTER)).split()
        if commits:
            registered[name] = min(order[commit] for commit in commits)
    late = []
    for path in RESULTS:
        result = json.loads(path.read_text())
        commits = git("log", "--format=%H", "-1", "--", str(path)).split()
        if commits and order[commits[0]] < registered.get(result["claim"], len(order)):
            late.append(name_of(path))
    assert late == []


def test_every_exact_claim_is_proved() -> None:
    proved = {judged.file.claim.number: judged.proved for judged in judge_all(list_claims(), FOLDER)}
    assert all(proved[number] for number in range(1, 10))


@pytest.mark.parametrize("path", MEASURED, ids=name_of)
def test_the_predictions_give_the_errors_of_the_result(path: Path) -> None:
    stored = json.loads(path.read_text())
    labels, arms, predictions = read_predictions(FOLDER, path.parent.name, find_claim(path.stem))
    assert stored["seeds"] >= 10
    for arm, rows in zip(arms, predictions, strict=True):
        errors = 100 * (rows != labels).mean(1)
        assert errors == pytest.approx(np.array(stored["arms"][arm]["values"]["error"]), abs=1e-5)


def test_all_claims_are_measured_on_the_digits() -> None:
    expected = {file.claim.name for file in list_claims() if file.claim.comparisons}
    assert {path.stem for path in MEASURED if path.parent.name == "digits"} == expected


def test_the_predictions_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*/*.npz")) < MEGABYTES * 1e6


def test_the_page_shows_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("claims_benchmark", TOP / "benchmarks" / "claims.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    claims = judge_all(list_claims(), FOLDER)
    assert script.filled(text, claims) == text
    measured = {judged.file.claim.name for judged in claims if judged.file.claim.comparisons}
    assert measured == set(re.findall(r"<!-- result: ([a-z0-9-]+) -->", text))
    assert {judged.file.path.name for judged in claims} <= set(re.findall(r"/(\w+\.py)\)", text))


def test_the_figures_of_the_page_are_there_and_no_others() -> None:
    page = (TOP / "docs" / "why-1x1.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"images/claims/([a-z0-9-]+\.png)", page))
    assert {path.name for path in (TOP / "docs" / "images" / "claims").iterdir()} == shown
    for file in list_claims():
        assert any(name.startswith(file.claim.name) for name in shown), f"no picture of {file.claim.name}"


def test_the_filters_of_the_first_layer_belong_to_their_results() -> None:
    (judged,) = (judged for judged in judge_all(list_claims(), FOLDER) if judged.file.claim.name == "orientation")
    assert set(filter_panels(judged)) == {TITLES[data] for data in judged.results}


@pytest.mark.parametrize("path", TIMES, ids=name_of)
def test_times_name_the_command_the_machine_and_the_hypothesis(path: Path) -> None:
    stored = json.loads(path.read_text())
    assert problems(stored, json.loads(REGISTER.read_text())) == []
    assert stored["environment"]["cpu"]
    assert stored["command"] == f"mlpconv claims time {path.stem} --data {path.parent.name} --rounds {stored['rounds']}"
