"""The files around the package agree with one another: versions, pins, entry point, what ships."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import mlpconv

TOP = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
PINS = [line for line in (TOP / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement)[0]).lower()


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == mlpconv.__version__ == version("mlpconv")


def test_every_pin_is_exact_and_names_no_place() -> None:
    assert "torch==2.13.0" in PINS
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin)] == []


@pytest.mark.parametrize("extra", ["core", *PROJECT["optional-dependencies"]])
def test_everything_asked_for_is_pinned(extra: str) -> None:
    wanted = PROJECT["dependencies"] if extra == "core" else PROJECT["optional-dependencies"][extra]
    assert {canonical(item) for item in wanted} <= {canonical(pin) for pin in PINS}


def test_no_requirement_names_a_place_or_a_build() -> None:
    text = (TOP / "pyproject.toml").read_text()
    assert "+cpu" not in text
    assert "://" not in "".join(PROJECT["dependencies"])


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="mlpconv")
    assert command.value == "mlpconv.cli:main"


def test_the_readme_and_the_licence_say_what_the_project_says() -> None:
    assert (TOP / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache-2.0" in (TOP / "README.md").read_text()


def test_every_goal_of_the_makefile_that_documents_name_exists() -> None:
    goals = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    pages = [TOP / "README.md", TOP / "CONTRIBUTING.md", TOP / ".ci" / "run", *(TOP / "docs").glob("*.md")]
    named = {goal for page in pages for goal in re.findall(r"\bmake (demo|test|lint|bench|clean)\b", page.read_text())}
    assert {"demo", "test", "lint"} <= named <= goals


def test_what_the_package_needs_at_run_time_would_ship() -> None:
    """A file under the package that version control ignores would be missing from a built wheel."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "src/mlpconv"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [name for name in listed.stdout.split() if not name.endswith(".pyc")] == []
