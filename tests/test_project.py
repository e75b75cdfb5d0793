"""The files around the package agree: versions, pins, entry point, contents of the distributions."""

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
PROJECT, TOOLS = (tomllib.loads((TOP / "pyproject.toml").read_text())[table] for table in ("project", "tool"))
PINS = [line for line in (TOP / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement)[0]).lower()


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (TOP / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest is not None
    assert cited is not None
    assert newest[1] == cited[1] == mlpconv.__version__ == version("mlpconv")


def test_every_pin_is_exact() -> None:
    assert "torch==2.13.0" in PINS
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin)] == []


@pytest.mark.parametrize("extra", ["core", *PROJECT["optional-dependencies"]])
def test_every_requirement_is_pinned(extra: str) -> None:
    requirements = PROJECT["dependencies"] if extra == "core" else PROJECT["optional-dependencies"][extra]
    assert {canonical(item) for item in requirements} <= {canonical(pin) for pin in PINS}


def test_no_requirement_names_a_url_or_a_build() -> None:
    text = (TOP / "pyproject.toml").read_text()
    assert "+cpu" not in text
    assert "://" not in "".join(PROJECT["dependencies"])


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="mlpconv")
    assert command.value == "mlpconv.__main__:main"


def test_the_licence_is_the_same_everywhere() -> None:
    assert (TOP / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache-2.0" in (TOP / "README.md").read_text()


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    pages = [TOP / "README.md", TOP / "CONTRIBUTING.md", TOP / ".ci" / "run", *(TOP / "docs").glob("*.md")]
    pattern = r"\bmake (demo|test(?:-slow)?|coverage|lint|bench|attacks|clean)\b"
    mentioned = {target for page in pages for target in re.findall(pattern, page.read_text())}
    assert {"demo", "test", "test-slow", "coverage", "lint"} <= mentioned <= targets


def test_the_package_with_its_weights_and_notices_stays_small() -> None:
    """Package indexes limit the size of a wheel, and the licences of the weights require their notices in it."""
    assert sum(path.stat().st_size for path in (TOP / "src").rglob("*") if path.suffix != ".pyc") < 20e6
    assert [name for name in PROJECT["license-files"] if not (TOP / name).is_file()] == []
    contents = TOOLS["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"src", "SECURITY.md", "CITATION.cff"} <= set(contents)
    assert [name for name in contents if not (TOP / name).exists()] == []


def test_no_file_of_the_package_is_ignored_by_git() -> None:
    """An ignored file would be missing from a built wheel."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "src/mlpconv"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [name for name in listed.stdout.split() if not name.endswith(".pyc")] == []
