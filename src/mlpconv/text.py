"""Text that came from files, such as the names of files and classes, made fit to be shown."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["composed", "natural", "printable"]

JOINERS = "\u200c\u200d"
"""Invisible, and yet whole scripts and many emoji are not written without them."""
BYTES = range(0xDC80, 0xDD00)
"""How Python keeps the bytes of a file's name that are not UTF-8."""


def printable(text: str) -> str:
    """The text as any terminal, page or JSON file can hold it: what is not seen, or turns lines around, is escaped.

    A byte that is not UTF-8 becomes \\xNN, a control character \\n or \\x1b, a change of direction \\u202e.
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter in JOINERS or unicodedata.category(letter) == "Zs":  # the spaces of other scripts are seen
        return letter
    if ord(letter) in BYTES:
        return f"\\x{ord(letter) - BYTES.start + 0x80:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC), in which an accented letter has one spelling."""
    return unicodedata.normalize("NFC", text)


def natural(text: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people do, numbers by their value: 2 before 10."""
    parts: list[str | int] = list(re.split(r"(\d+)", text))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, text
