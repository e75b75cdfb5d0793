"""Every `python`, `bash` and `console` block of README.md and docs/*.md is executed, in order, page by page.

A page runs in a working folder of its own that holds
    photos/cat/*.png, photos/dog/*.png   two classes of 12 RGB images, 32 x 32
    digit.png                            a held-out digit, 8 x 8, grey
    model.safetensors                    a small model trained on the digits
    runs/digits-001/                     the run folder that model came from
In a `console` block the lines after "$ " are run; the others show output and are not compared. Names that one python
block binds are there in the next. A block right after `<!-- not run: REASON -->` is not run, one right after
`<!-- fails -->` must end with an error. Training is cut to one epoch where the page does not say how long.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpconv
from mlpconv.cli import VERBS, main
from mlpconv.data.catalog import CATALOG

TOP = Path(__file__).resolve().parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
RUN = {"python", "bash", "console"}
SHOWN = {"text", "json", "csv", "toml"}
SHELL_LETTERS = set("|&;<>*?$`(){}[]~")
MOST_NOT_RUN = 12
BRIEF = {"epochs": 1, "min_steps": 1}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    line: int
    note: str = ""  # what stands in the comment right before it

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.note.startswith("not run:")


def blocks_of(text: str) -> list[Block]:
    found: list[Block] = []
    lines = text.splitlines()
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = (number, line.strip().removeprefix("```"))
            continue
        start, language = opened
        before = next((above for above in reversed(lines[:start]) if above.strip()), "")
        comment = re.fullmatch(r"\s*<!--\s*(.*?)\s*-->\s*", before)
        code = "\n".join(lines[start + 1 : number])
        found.append(Block(language, code, start + 1, comment[1] if comment else ""))
        opened = None
    return found


def commands_of(block: Block) -> list[str]:
    """The shell commands of a block, one string each; a backslash at the end of a line joins it with the next."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def run_command(command: str, folder: Path) -> int:
    """Run one command line: a plain `mlpconv` call in this process, anything else by a real shell."""
    command = re.sub(r"\s+#.*$", "", command)
    if command.split()[0] == "mlpconv" and not SHELL_LETTERS & set(command):
        return main(cut_short(shlex.split(command)[1:]))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment).returncode


def cut_short(argv: list[str]) -> list[str]:
    """The words of a command with training cut to what the page says of its length, or else to one epoch."""
    if argv[:1] != ["train"] or "--resume" in argv or "--help" in argv:
        return argv
    told = {word.removeprefix("--").partition("=")[0] for word in argv}
    if argv[1] not in CATALOG and not told & {"recipe", "epochs", "set", "from"}:  # pretrained features have no epochs
        return argv if told & {"minutes", "tune"} else [*argv, "--minutes=0"]
    return argv if "--from" in argv else [*argv, *(f"--set={key}=1" for key in BRIEF if key not in told)]


def run_page(blocks: list[Block], folder: Path) -> None:
    """Execute the blocks of a page in order; the failure names the block's line."""
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks:
        if not block.is_run:
            continue
        fails = block.note.startswith("fails")
        if block.language == "python":
            run_python(block, names, fails)
            continue
        codes = {command: run_command(command, folder) for command in commands_of(block)}
        wrong = {command: code for command, code in codes.items() if bool(code) is not fails}
        assert not wrong, f"line {block.line}: {'should fail' if fails else 'failed'}: {wrong}"


def run_python(block: Block, names: dict[str, Any], fails: bool) -> None:
    code = compile("\n" * block.line + block.code, "page", "exec")
    if fails:
        with pytest.raises(mlpconv.MlpconvError):
            exec(code, names)
    else:
        exec(code, names)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files every page starts with, made once."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(7)
    for name, colour in {"cat": (200, 90, 40), "dog": (40, 90, 200)}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{name}{index:02d}.png")
    Image.fromarray(mlpconv.open_data("digits").split("test").images[0, 0]).save(folder / "digit.png")
    run = mlpconv.fit("digits", out=folder / "runs" / "digits-001", epochs=1, min_steps=1)
    shutil.copy(run.folder / "model.safetensors", folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    folder = tmp_path / "page"
    if any(block.is_run for block in blocks):
        shutil.copytree(prepared, folder)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
        fit = mlpconv.fit
        monkeypatch.setattr(
            mlpconv, "fit", lambda *words, **told: fit(*words, **({} if "source" in told else BRIEF) | told)
        )
        run_page(blocks, folder)
    assert all(block.language in RUN | SHOWN for block in blocks), "a fence without a known language is never run"


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    left_out = [block for page in PAGES for block in blocks_of(page.read_text()) if block.note.startswith("not run:")]
    assert len(left_out) <= MOST_NOT_RUN
    assert all(len(block.note.removeprefix("not run:").strip()) > 10 for block in left_out)


def test_every_verb_has_a_page_that_the_index_names() -> None:
    index = (TOP / "docs" / "index.md").read_text()
    for verb in VERBS:
        page = "training" if verb == "train" else verb
        assert (TOP / "docs" / f"{page}.md").is_file()
        assert f"({page}.md)" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


PAGE = """
```console
$ echo one > a.txt
one
```
```python
x = 1
```

<!-- not run: it would download 170 MB -->

```bash
exit 3
```
"""


def test_blocks_are_found_with_their_notes() -> None:
    found = blocks_of(PAGE)
    assert [(block.language, block.line, block.is_run) for block in found] == [
        ("console", 2, True),
        ("python", 6, True),
        ("bash", 12, False),
    ]
    assert commands_of(found[0]) == ["echo one > a.txt"]
    assert commands_of(Block("bash", "a \\\n  b\n# c\n\nd", 1)) == ["a    b", "d"]


@pytest.mark.parametrize(
    "block",
    [
        Block("bash", "false", 1),
        Block("bash", "mlpconv no-such-verb", 1),
        Block("console", "$ false | cat", 1),
        Block("bash", "true", 1, "fails"),
        Block("python", "1 / 0", 1),
        Block("python", "x = 1", 1, "fails"),
    ],
    ids=lambda block: f"{block.note} {block.code}",
)
def test_a_wrong_block_is_caught(block: Block, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError, pytest.fail.Exception)):
        run_page([block], tmp_path)


def test_training_is_cut_short_unless_the_page_says_how_long() -> None:
    assert cut_short(["train", "digits"]) == ["train", "digits", "--set=epochs=1", "--set=min_steps=1"]
    assert cut_short(["train", "digits", "--set", "epochs=2"])[-2:] == ["epochs=2", "--set=min_steps=1"]
    assert cut_short(["train", "photos", "--from", "squeezenet"])[-1] == "squeezenet"  # no epochs to cut
    assert cut_short(["train", "photos", "--out", "run"])[-1] == "--minutes=0"
    assert cut_short(["train", "photos", "--minutes", "5"])[-1] == "5"
    assert cut_short(["train", "photos", "--recipe", "best"])[-1] == "--set=min_steps=1"
    assert cut_short(["train", "digits", "--epochs", "2"])[-2:] == ["2", "--set=min_steps=1"]
    assert cut_short(["train", "digits", "--resume"]) == ["train", "digits", "--resume"]
    assert cut_short(["predict", "a"]) == ["predict", "a"]


def test_names_live_on_from_block_to_block(tmp_path: Path) -> None:
    run_page([Block("python", "x = 2", 1), Block("python", "if x != 2: raise SystemError", 2)], tmp_path)
    with pytest.raises(NameError):
        run_page([Block("python", "y", 1)], tmp_path)
