"""Escape and sort text from files, and word messages for the caller: Python or the command line."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = [
    "Wording", "composed", "counted", "natural", "option", "printable", "resume_hint", "shell_path", "shell_word",
    "worded",
]  # fmt: skip

JOINERS = "\u200c\u200d"
"""Invisible characters that many scripts and emoji need."""
SURROGATE_BYTES = range(0xDC80, 0xDD00)
"""The code points with which Python represents bytes of a file name that are not UTF-8."""


def printable(text: str) -> str:
    """Escape invisible and direction-changing characters, so that any terminal, page or JSON file can show the text.

    A byte that is not UTF-8 becomes \\xNN, a control character \\n or \\x1b, a change of direction \\u202e.
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter in JOINERS or unicodedata.category(letter) == "Zs":  # the spaces of other scripts are visible
        return letter
    if ord(letter) in SURROGATE_BYTES:
        return f"\\x{ord(letter) - SURROGATE_BYTES.start + 0x80:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def shell_word(text: str) -> str:
    """Quote a word for a shell; a word with characters that a terminal does not show is written as $'...'."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_shell_letter, text))}'"


def _shell_letter(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def shell_path(path: str | os.PathLike[str]) -> str:
    """Quote a path for a shell, with ./ before a leading dash, which would begin an option."""
    text = os.fspath(path)
    return shell_word(f"./{text}" if text.startswith("-") else text)


def composed(text: str) -> str:
    """Normalise text to Unicode's composed form (NFC), in which an accented letter has one spelling."""
    return unicodedata.normalize("NFC", text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural: 1 case, 1,000 cases, 2 classes."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "sh", "tch", "nch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def natural(text: str) -> tuple[list[str | int], str]:
    """Return a sort key for natural order: numbers by their value, 2 before 10."""
    parts: list[str | int] = list(re.split(r"(\d+)", text))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, text


class Wording:
    """How messages name the options of `mlpconv.fit`: as keyword arguments. The command line replaces it."""

    def option(self, name: str, value: object) -> str:
        """Return an option with a value to pass; a value in capitals is a placeholder, as in out=FOLDER."""
        placeholder = isinstance(value, str) and value.isupper()
        return f"{name}={value if placeholder else repr(value)}"

    def resume_hint(self, folder: object) -> str:
        """Return a sentence that says how to resume the run in a folder."""
        return f"To resume the run, pass {self.option('out', str(folder))}, {self.option('resume', True)}."


_WORDING: ContextVar[Wording] = ContextVar("wording")
_PYTHON = Wording()


def option(name: str, value: object) -> str:
    """Return an option of `fit` as the caller would write it: out=FOLDER in Python, --out FOLDER in a shell."""
    return _WORDING.get(_PYTHON).option(name, value)


def resume_hint(folder: object) -> str:
    """Return a sentence, in the words of the caller, that says how to resume the run in a folder."""
    return _WORDING.get(_PYTHON).resume_hint(folder)


@contextmanager
def worded(wording: Wording) -> Iterator[None]:
    """Use another wording for the messages of this thread inside the context."""
    token = _WORDING.set(wording)
    try:
        yield
    finally:
        _WORDING.reset(token)
