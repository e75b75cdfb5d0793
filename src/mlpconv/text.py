"""Text that came from files, such as the names of files and classes, made fit to be shown."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

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
