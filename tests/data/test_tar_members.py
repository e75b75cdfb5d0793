"""The parser of tar headers against the standard library, and on damaged and hostile files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlpconv.data.tar_members import BLOCK, members
from mlpconv.errors import DataError

NAMES = ["a.txt", "folder/b.bin", "x" * 120 + ".png", "deep/" * 40 + "c.png", "größe-\N{SNOWMAN}.cls", "empty"]


def write(path: Path, format_: int, names: list[str] = NAMES) -> Path:
    with tarfile.open(path, "w", format=format_) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for index, name in enumerate(names):
            content = bytes(range(256)) * (index * 3)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_the_standard_library(tmp_path: Path, format_: int) -> None:
    names = [name for name in NAMES if format_ != tarfile.USTAR_FORMAT or len(name) < 100]
    path = write(tmp_path / "a.tar", format_, names)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    assert [tuple(member) for member in members(path)] == expected
    assert len(expected) == len(names)


def test_links_and_devices_are_named_and_have_no_content(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "x"), (tarfile.CHRTYPE, "")):
            member = tarfile.TarInfo("evil.png")
            member.type, member.linkname = kind, target
            tar.addfile(member)
    found = list(members(tmp_path / "a.tar"))
    assert [member.length for member in found] == [-1] * 3
    assert [member.name for member in found] == [
        "evil.png (a symbolic link)", "evil.png (a hard link)", "evil.png (a device)",
    ]  # fmt: skip


def cut(content: bytes, to: int) -> bytes:
    return content[:to]


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", tarfile.USTAR_FORMAT, ["a.txt", "b", "c"]).read_bytes()
    last = max(member.offset + member.length for member in members(tmp_path / "a.tar"))
    for end in (*range(1, last, 131), last - 1, last):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"truncated|not an uncompressed tar"):
            list(members(tmp_path / "cut.tar"))


def test_every_changed_byte_of_a_header_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", tarfile.USTAR_FORMAT, ["a.txt", "b"]).read_bytes()
    for position in (*range(0, 345, 7), BLOCK + 130):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        (tmp_path / "damaged.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=r"not an uncompressed tar|damaged|truncated|invalid length"):
            list(members(tmp_path / "damaged.tar"))


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:263] = b"ustar\0"
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(b"bomb.png", b"77777777777"), "truncated: it ends inside the member 'bomb.png'"),
        (header(b"bomb.png", b"\x80" + b"\xff" * 11), "truncated: it ends inside the member"),
        (header(b"a", b"0000000009x"), "invalid length"),
        (header(b"a", b"00000000098"), "invalid length"),
        (header(b"long", b"00001000000", b"x") + bytes(1 << 18), "extended header of 262,144 bytes"),
        (header(b"a", b"00000000000"), "no end marker"),
        (b"\x1f\x8b" + bytes(600), "is not an uncompressed tar file"),
        (b"hello", "no end marker"),
    ],
)
def test_hostile_headers(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(members(tmp_path / "bad.tar"))


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "a.tar", "w").close()
    assert list(members(tmp_path / "a.tar")) == []


def test_pax_records_that_make_no_sense_are_ignored(tmp_path: Path) -> None:
    for records in (b"99999 path=x\n", b"abc\n", b"0 path=x\n", b"11 path=ok\n7 junk\n"):
        body = records.ljust(BLOCK, b"\0")
        content = header(b"pax", b"%011o" % len(records), b"x") + body + header(b"a", b"00000000001") + b"1" * BLOCK
        (tmp_path / "a.tar").write_bytes(content + bytes(2 * BLOCK))
        found: Any = list(members(tmp_path / "a.tar"))
        assert [(member.name, member.length) for member in found] == [("ok" if b"=ok" in records else "a", 1)]
