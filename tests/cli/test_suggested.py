"""Every command that a message suggests means what it says, also where a path starts with a dash or is a name."""

from __future__ import annotations

import re
import shlex
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from mlpconv.claims.claim_files import find_claim
from mlpconv.claims.report import html_report
from mlpconv.claims.results import judge_all, rerun
from mlpconv.cli import main, make_app
from mlpconv.cli.data import _print_ready
from mlpconv.cli.search import print_result
from mlpconv.cli.train import CommandLine, print_summary
from mlpconv.data import open_data
from mlpconv.data.catalog import CATALOG, shell_data
from mlpconv.report.run_contents import RunParts
from mlpconv.report.sections import usage

OWN = """
from dataclasses import replace
from mlpconv.claims.exact.size_and_cost import CLAIM
CLAIM = replace(CLAIM, name="mine", number=None)
"""
NAMES = ["-d", "--resume", "a b'c", "plain", "[bold]x", "$HOME", "digits"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def understood(command: str) -> dict[str, Any]:
    """Return the arguments that the command line reads from a command, as a shell passes it."""
    program, *words = shlex.split(command.replace("IMAGE...", "a.png"))
    assert program == "mlpconv"
    _, bound, _ = make_app(words[0]).parse_args(words, exit_on_error=False, print_error=False)
    return bound.arguments


def commands(text: str) -> list[str]:
    return re.findall(r"mlpconv (?:train|predict|maps|evaluate|claims) .*", text)


@pytest.mark.parametrize("name", NAMES)
def test_after_training(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val_accuracy": None, "train_accuracy": 0.5}
    run = SimpleNamespace(folder=Path(name), classifier=SimpleNamespace(info={"metrics": metrics}), history=[])
    print_summary(cast("Any", run), 1.0)
    models = [understood(command)["model"] for command in commands(capsys.readouterr().out)]
    assert [Path(model) for model in models] == [Path(name)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_to_resume(name: str) -> None:
    resume = CommandLine("digits", Path(name)).resume_hint(Path(name)).removeprefix("To resume: ")
    found = understood(resume)
    assert (found["data"], found["out"], found["data_dir"], found["resume"]) == ("digits", Path(name), Path(name), True)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_search(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    best = SimpleNamespace(number=1, error=0.5, macs=1, parameters=1, settings={})
    result = SimpleNamespace(best=best, front=[best], importance={}, folder=Path(name), counts=dict)
    print_result(cast("Any", result), f"./{name}")
    (command,) = commands(capsys.readouterr().out)
    assert (understood(command)["data"], understood(command)["recipe"]) == (f"./{name}", f"best-of:{name}")


@pytest.mark.parametrize("name", NAMES)
def test_after_data_is_prepared(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _print_ready(CATALOG["mnist"], [], Path(name))
    (command,) = commands(capsys.readouterr().out)
    assert (understood(command)["data"], understood(command)["data_dir"]) == ("mnist", Path(name))


@pytest.mark.parametrize("name", ["-d", "digits"])
def test_after_packing(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("light", "dark"):
        (here / "photos" / label).mkdir(parents=True)
        for index in range(2):
            Image.new("L", (8, 8), index + 99 * (label == "light")).save(here / "photos" / label / f"{index}.png")
    assert main(["data", "pack", "photos", "--out", f"./{name}"]) == 0
    (command,) = commands(capsys.readouterr().out)
    assert open_data(understood(command)["data"]).classes == ("dark", "light")


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_data_by_their_path(name: str) -> None:
    assert shlex.split(shell_data(Path(name)))[0] in (name, f"./{name}")
    assert shlex.split(shell_data(Path(name)))[0] not in CATALOG
    assert shell_data("digits") == "digits"


@pytest.mark.parametrize("name", NAMES)
def test_in_the_report(name: str, here: Path) -> None:
    (here / name).mkdir()
    (here / name / "model.safetensors").touch()
    parts = RunParts(Path(name), {}, {"name": "digits"}, {}, {}, {}, {}, (), {}, None)
    shown = [command.partition("  #")[0] for command in commands(unescape(usage(parts)))]
    assert [Path(understood(command)["model"]) for command in shown] == [Path(name) / "model.safetensors"] * 3


@pytest.mark.parametrize("name", NAMES)
def test_about_claims(name: str, here: Path) -> None:
    found = understood(rerun(Path(name), "digits", find_claim("mlpconv")))
    assert (found["names"], found["data"], found["out"]) == (("mlpconv",), ("digits",), Path(name))


def test_about_a_claim_of_your_own(here: Path) -> None:
    (here / "-my own.py").write_text(OWN)
    file = find_claim("-my own.py")
    (shown,) = set(commands(unescape(re.sub("<[^>]*>", "\n", html_report(judge_all([file], here))))))
    for command in (rerun(Path("out"), "exact", file), shown):
        assert [find_claim(name) for name in understood(command)["names"]] == [file]
