"""Hostile data-set files, with false lengths, contents or types, are refused at little cost."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.work import within

from mlpconv.data import formats, open_data
from mlpconv.data.formats import CIFAR10_RECORD, read_cifar, read_cifar_archive, read_idx_pair
from mlpconv.data.svhn import read_svhn
from mlpconv.errors import DataError, MlpconvError


def refused(read: Callable[[], object], sentence: str, megabytes: float = 8) -> None:
    """Expect a DataError after a limited number of calls and within a memory limit."""
    with pytest.raises(DataError, match=sentence):
        within(read, calls=50_000, megabytes=megabytes)


def header(*dimensions: int, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(dimensions))) + struct.pack(f">{len(dimensions)}I", *dimensions)


def pair(folder: Path, images: bytes, labels: bytes) -> Callable[[], object]:
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return lambda: read_idx_pair(folder / "images", folder / "labels", 28, 60_000, 10)


TWO_LABELS = header(2) + bytes((3, 4))
PIXELS = bytes(2 * 28 * 28)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (b"", TWO_LABELS, "not an IDX file of images of 28 x 28"),
        (b"\x1f\x8b", TWO_LABELS, "not an IDX file|damaged"),
        (header(2, 28, 28)[:-1] + PIXELS[:0], TWO_LABELS, "not an IDX file"),
        (header(2, 28, 27) + PIXELS, TWO_LABELS, "not an IDX file"),
        (header(2, 28, 28, kind=13) + PIXELS, TWO_LABELS, "not an IDX file"),
        (header(2, 28, 28, 1) + PIXELS, TWO_LABELS, "not an IDX file"),
        (header(2, 28, 28) + PIXELS[1:], TWO_LABELS, "declares 1,568 bytes of data but contains only 1,567"),
        (header(2, 28, 28) + PIXELS + b"x", TWO_LABELS, "declares 1,568 bytes of data but contains more"),
        (header(0, 28, 28), TWO_LABELS, "declares 0 items; accepted: 1 to 60,000"),
        (header(60_001, 28, 28), TWO_LABELS, "declares 60,001 items"),
        (header(2**32 - 1, 28, 28), TWO_LABELS, "declares 4,294,967,295 items"),
        (header(2, 28, 28) + PIXELS, header(3) + bytes(3), "2 images but .* 3 labels"),
        (header(2, 28, 28) + PIXELS, header(2) + bytes((3, 10)), "label 10 of image 1 is out of range; accepted: 0"),
        (header(2, 28, 28) + PIXELS, header(2, 28, 28) + PIXELS, "not an IDX file of labels"),
        (pickle.dumps([1, 2]), TWO_LABELS, "not an IDX file"),
    ],
)
def test_false_idx_files_are_refused(tmp_path: Path, images: bytes, labels: bytes, sentence: str, packed: bool) -> None:
    change = gzip.compress if packed else bytes
    refused(pair(tmp_path, change(images), change(labels)), sentence)


def test_an_idx_bomb_is_read_at_most_one_byte_too_far(tmp_path: Path) -> None:
    """100 MB of zeros behind a header of two images, packed into 100 kB."""
    bomb = gzip.compress(header(2, 28, 28) + bytes(100 << 20), 1)
    refused(pair(tmp_path, bomb, TWO_LABELS), "contains more")


def test_too_long_idx_files_are_refused(tmp_path: Path) -> None:
    read = pair(tmp_path, header(2, 28, 28), TWO_LABELS)
    os.truncate(tmp_path / "images", 10**12)
    refused(read, "1,000,000,000,000 bytes; accepted: up to")


@pytest.mark.parametrize("spoil", [0, 3, 10, 40, -1, -5, -8])
def test_damaged_gzip_is_refused(tmp_path: Path, spoil: int) -> None:
    """Change a byte of the header, the stream, the checksum or the length."""
    noise = np.random.RandomState(1).bytes(2 * 784)
    content = bytearray(gzip.compress(header(2, 28, 28) + noise, mtime=0))
    content[spoil] ^= 0x55
    read = pair(tmp_path, bytes(content), TWO_LABELS)
    if spoil == 3:  # a flag that adds a name: the rest is read as that name
        refused(read, "damaged|not an IDX|holds")
    else:
        refused(read, "damaged|not an IDX")


def test_a_pipe_instead_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(TWO_LABELS)
    refused(lambda: open_data("mnist", root=tmp_path), "not a regular file")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes; accepted: a multiple of 3,073"),
        (bytes(3072), "has 3,072 bytes"),
        (bytes(3074), "has 3,074 bytes"),
        (b"\x0a" + bytes(3072), "label 10 of image 0 is out of range; accepted: 0 to 9"),
        (bytes(3073) + b"\xff" + bytes(3072), "label 255 of image 1"),
        (pickle.dumps({"data": 1}), "accepted: a multiple"),
    ],
)
def test_inconsistent_cifar_batches_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "batch").write_bytes(content)
    refused(lambda: read_cifar([tmp_path / "batch"], CIFAR10_RECORD), sentence)


def test_a_too_long_cifar_batch_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(b"")
    os.truncate(tmp_path / "batch", 3073 * 10_001)
    refused(lambda: read_cifar([tmp_path / "batch"], CIFAR10_RECORD), "up to 30,730,000")


RECORD = bytes(3073)
WANTED = {"train": ("a.bin",)}


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def archive_reader(path: Path, content: bytes) -> Callable[[], object]:
    path.write_bytes(content)
    return lambda: read_cifar_archive(path, "set", WANTED, CIFAR10_RECORD)


def test_only_the_requested_member_is_read(tmp_path: Path, write: SimpleNamespace) -> None:
    """Members with outside paths, links and devices are skipped, and nothing is written."""
    outside = tmp_path / "outside"
    members = [
        ("../outside", b"x"),
        (str(outside), b"x"),
        (special("set/link", tarfile.SYMTYPE, str(outside)), b""),
        (special("set/hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (special("set/device", tarfile.CHRTYPE), b""),
        (special("set/pipe", tarfile.FIFOTYPE), b""),
        ("x" * 5000, b"long name"),
        ("set/A.BIN", b"other case"),
        ("set/a.bin", RECORD),
        ("set/a.bin", b"a second one of the same name"),
    ]
    read = archive_reader(tmp_path / "set.tar.gz", write.tar(members))
    splits = read()
    assert isinstance(splits, dict)
    assert splits["train"].labels.tolist() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


@pytest.mark.parametrize(
    ("info", "content", "sentence"),
    [
        (special("set/a.bin", tarfile.SYMTYPE, "/etc/passwd"), b"", "is not a regular file"),
        (special("set/a.bin", tarfile.LNKTYPE, "other"), b"", "is not a regular file"),
        (special("set/a.bin", tarfile.FIFOTYPE), b"", "is not a regular file"),
        (special("set/a.bin", tarfile.BLKTYPE), b"", "is not a regular file"),
        ("set/a.bin", RECORD[1:], "3,072 bytes"),
        ("set/a.bin", b"", "0 bytes"),
    ],
)
def test_an_inconsistent_member_is_refused(
    tmp_path: Path, write: SimpleNamespace, info: str | tarfile.TarInfo, content: bytes, sentence: str
) -> None:
    refused(archive_reader(tmp_path / "set.tar.gz", write.tar([(info, content)])), sentence)


def test_archives_with_endless_members_are_refused(tmp_path: Path, write: SimpleNamespace) -> None:
    many = write.tar([(f"set/{i}", b"") for i in range(1001)])
    refused(archive_reader(tmp_path / "many.tar.gz", many), "over 1000 members")


def test_an_archive_bomb_is_cut_off(tmp_path: Path, write: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first member has 60 MB of zeros; the archive may unpack to about 50 MB."""
    bomb = write.tar([("set/filler", bytes(60 << 20)), ("set/a.bin", RECORD)])
    refused(archive_reader(tmp_path / "bomb.tar.gz", bomb), "unpacks to far more")


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("././@LongLink", tarfile.GNUTYPE_LONGNAME, 0o77777777777),
        ("pax", tarfile.XHDTYPE, 0o77777777777),
        ("set/readme", tarfile.REGTYPE, 0o77777777777),
        ("set/readme", tarfile.REGTYPE, 2**80),
        ("set/a.bin", tarfile.REGTYPE, 2**80),
        ("set/a.bin", tarfile.REGTYPE, 3073 * 10_000),
    ],
)
def test_a_header_that_declares_gigabytes_is_refused(tmp_path: Path, name: str, kind: bytes, size: int) -> None:
    """The first header declares 8 GB or more, but the archive ends there."""
    info = special(name, kind)
    info.size = size
    content = gzip.compress(info.tobuf(tarfile.GNU_FORMAT))
    refused(archive_reader(tmp_path / "a.tar.gz", content), "cannot be read|ends after", 40)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(tmp_path: Path, form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as archive:
        for name, content in (("set", b""), ("set/notes", b"x" * 700), ("set/a.bin", b"\7" + RECORD[1:])):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if not content:
                info.type = tarfile.DIRTYPE
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(content))
    splits = archive_reader(tmp_path / "a.tar.gz", out.getvalue())()
    assert isinstance(splits, dict)
    assert splits["train"].labels.tolist() == [7]


def test_flipped_bits_in_a_tar_header_are_refused(tmp_path: Path, write: SimpleNamespace) -> None:
    plain = gzip.decompress(write.tar([("set/notes", b"x"), ("set/a.bin", RECORD)]))
    for position in range(0, 500, 3):
        changed = bytearray(plain)
        changed[position] ^= 1 << position % 7
        read = archive_reader(tmp_path / "a.tar.gz", gzip.compress(bytes(changed), 1))
        with pytest.raises(DataError, match="a header of the tar archive is damaged"):
            read()


@pytest.mark.parametrize("cut", [0, 5, 20, 100, 200])
def test_a_truncated_archive_is_refused(tmp_path: Path, write: SimpleNamespace, cut: int) -> None:
    noise = np.random.RandomState(2).bytes(3072)
    content = write.tar([("set/a.bin", b"\1" + noise)])
    refused(archive_reader(tmp_path / "a.tar.gz", content[:cut]), "cannot be read|ends after")


def test_an_archive_without_the_data_set_is_refused(tmp_path: Path, write: SimpleNamespace) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(write.tar([("readme", b"hello")]))
    refused(lambda: open_data("cifar10", root=tmp_path), "has no images of cifar10")


def test_the_limit_counts_the_bytes_read() -> None:
    stream = formats._LimitedStream(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(bytes(100)))), 50)
    assert len(stream.read(50)) == 50
    with pytest.raises(DataError, match="far more"):
        stream.read(1)


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
STARTS = st.sampled_from(
    [b"", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", header(2, 28, 28), header(2), b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"]
)


@FUZZ
@given(STARTS, st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_our_errors_only(tmp_path: Path, start: bytes, rest: bytes, packed: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(start + rest, 1) if packed else start + rest)
    readers: list[Callable[[], object]] = [
        lambda: read_idx_pair(path, path, 28, 60_000, 10),
        lambda: read_cifar([path], CIFAR10_RECORD),
        lambda: read_cifar_archive(path, "set", WANTED, CIFAR10_RECORD),
        lambda: read_svhn([path], [100]),
    ]
    for read in readers:
        try:
            assert read() == {}
        except MlpconvError as error:
            assert "\n" not in str(error)
