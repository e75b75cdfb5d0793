"""Text from files is escaped and sorted, and messages use the caller's wording."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.text import (
    Wording,
    composed,
    counted,
    natural,
    option,
    printable,
    resume_hint,
    shell_path,
    shell_word,
    worded,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("naïve 猫", "naïve 猫"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\u2028c", "a\\nb\\u2028c"),
        ("\u202egnp", "\\u202egnp"),
        ("\u200b\ufeff", "\\u200b\\ufeff"),
        (os.fsdecode(b"\xe9t\xe9"), "\\xe9t\\xe9"),
        ("\ud800", "\\ud800"),
        ("👩\u200d🚀 می\u200cشود", "👩\u200d🚀 می\u200cشود"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
    ],
)
def test_invisible_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_any_text_becomes_one_stable_line_of_utf8(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert json.loads(json.dumps(shown).encode()) == shown
    assert printable(shown) == shown
    assert not {"\x1b", "\x07", "\u202e", "\u2066"} & set(shown)


@pytest.mark.parametrize(
    "names",
    [
        ["2", "9", "10", "a"],
        ["", "7", "x"],
        ["b9", "b010", "b10", "c1d2", "c1d10"],
        ["v1.9", "v1.10"],
        ["x5", "x\u0667"],
    ],
)
def test_names_are_sorted_in_natural_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(backwards, key=natural) == names


@pytest.mark.parametrize(
    ("number", "noun", "shown"),
    [
        (1, "case", "1 case"),
        (0, "case", "0 cases"),
        (1000, "case", "1,000 cases"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
        (3, "epoch", "3 epochs"),
        (1, "image file", "1 image file"),
    ],
)
def test_a_noun_agrees_with_its_number(number: int, noun: str, shown: str) -> None:
    assert counted(number, noun) == shown


def test_an_accented_letter_has_one_spelling() -> None:
    assert composed("e\u0301") == composed("\u00e9") == "\u00e9"


def test_options_are_named_as_keyword_arguments() -> None:
    assert option("out", "FOLDER") == "out=FOLDER"
    assert option("device", "cpu") == "device='cpu'"
    assert option("resume", True) == "resume=True"
    assert option("epochs", 7) == "epochs=7"
    assert resume_hint("my run") == "To resume the run, pass out='my run', resume=True."


def test_a_caller_can_replace_the_wording_temporarily() -> None:
    class Shell(Wording):
        def option(self, name: str, value: object) -> str:
            return f"--{name} {value}"

    with pytest.raises(ZeroDivisionError), worded(Shell()):
        assert resume_hint("r") == "To resume the run, pass --out r, --resume True."
        raise ZeroDivisionError
    assert option("out", "r") == "out='r'"


PATHS = [
    "plain",
    "a b'c",
    "-d",
    "--",
    "a/-b",
    "$HOME",
    "a\nb\x1b[31m",
    "it's\t\\n",
    os.fsdecode(b"\xe9t\xe9"),
    "\u200b\u00a0f",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_the_path() -> None:
    words = [shell_path(path) for path in PATHS]
    assert all(word.isprintable() for word in words)
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True)
    expected = [f"./{path}" if path.startswith("-") else path for path in PATHS]
    assert [os.fsdecode(path) for path in done.stdout.split(b"\0")[:-1]] == expected
    assert (shell_word("-1"), shell_word("a b")) == ("-1", "'a b'")
