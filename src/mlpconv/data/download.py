"""Fetching the published files: the only code of this package that uses the network."""

from __future__ import annotations

import hashlib
import http
import http.client
import ipaddress
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mlpconv.data.catalog import Published, PublishedFile
from mlpconv.errors import DataError, DownloadError
from mlpconv.files import fsync_folder

__all__ = ["Progress", "fetch", "place", "prepare"]

TIMEOUT = 30.0  # seconds without an answer
PIECE = 1 << 16
TRIES = 50  # each goes on where the one before stopped; one that brings nothing is the last
SLOWEST, PATIENCE = 1024, 60.0  # bytes a second, looked at every so many seconds
REDIRECTS = 5
MOVED = (301, 302, 303, 307, 308)

Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all


class _InterruptedError(Exception):
    """The connection ended early; what has come is kept."""


def prepare(
    entry: Published, to: Path, *, mirror: str | None = None, extra: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Fetch the files of a data set into a folder, each verified before it gets its name; returns their paths.

    What is there already is verified and kept. `mirror` is the address of another folder with the same files; `extra`
    fetches the optional files too. Raises DownloadError for the network's failures, DataError for the disk's.
    """
    folder = place(entry, to)
    paths = []
    for file in entry.files:
        if extra or not file.optional:
            url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
            paths.append(fetch(file, folder, url=url, progress=progress))
    return paths


def place(entry: Published, to: Path) -> Path:
    """The folder into which the files of a data set go: archives lie in the root, all else in its official folder."""
    return to if entry.archive else to / entry.folder


def fetch(
    file: PublishedFile,
    folder: Path,
    *,
    url: str | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """Download one published file: bounded, resumed from NAME.part, verified, and only then named.

    Raises DownloadError where it cannot be had or is not what was published, DataError where it cannot be written.
    """
    url = url or file.url
    target, part = folder / file.name, folder / f"{file.name}.part"
    _check_address(url, file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if target.stat().st_size == file.bytes and _is_published(target, file):
                return target
            raise DownloadError(f"{str(target)!r} is there but is not the published file: move it away first.")
        missing = file.bytes - _length(part) - shutil.disk_usage(folder).free
        if missing > 0:
            raise DataError(f"{str(folder)!r} has {missing:,} bytes too little free for {file.name}: make room there.")
        _fill(part, file, url, progress, timeout)
        os.replace(part, target)
        fsync_folder(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{str(target)!r} cannot be written ({reason}): choose another folder with --to.") from error
    return target


def _fill(part: Path, file: PublishedFile, url: str, progress: Progress | None, timeout: float) -> None:
    """Bring the part file to its full, verified content, going on from what is there as long as more comes."""
    for _ in range(TRIES):
        before = _length(part)
        try:
            _receive(part, file, url, progress, timeout)
        except _InterruptedError as error:
            if _length(part) > before:
                continue
            raise DownloadError(f"{file.name} could not be downloaded ({error}). {_by_hand(file, part)}") from error
        if _is_published(part, file):
            return
        part.unlink()
        if before == 0:
            raise DownloadError(
                f"{url} is not the published {file.name}, as its checksum differs: nothing was kept. "
                f"{_by_hand(file, part)}"
            )
    raise DownloadError(f"{file.name} could not be downloaded in {TRIES} tries. {_by_hand(file, part)}")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(part: Path, file: PublishedFile, url: str, progress: Progress | None, timeout: float) -> None:
    """One request: append to the part file until it is full; raises _InterruptedError where the connection ends."""
    done = _length(part)
    if done > file.bytes:
        part.unlink()
        done = 0
    if done == file.bytes:
        return
    with _request(url, done, timeout) as answer:
        done = _starting_point(answer, done, file, url)
        with open(part, "r+b" if done else "wb") as out:
            out.seek(done)
            _copy(answer, out, done, file, progress)
            out.flush()
            os.fsync(out.fileno())


def _request(url: str, start: int, timeout: float) -> http.client.HTTPResponse:
    """Ask for a file from a byte on, following redirections one by one."""
    headers = {"User-Agent": "mlpconv", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    for _ in range(REDIRECTS):
        try:
            answer: http.client.HTTPResponse = _opener(url).open(
                urllib.request.Request(url, headers=headers),  # noqa: S310  (the opener knows http and https only)
                timeout=timeout,
            )
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return _request(url, 0, timeout)
            if error.code not in MOVED:
                raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error
            url = _moved(url, error.headers.get("Location", ""))
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise _InterruptedError(_plainly(error)) from error
        else:
            return answer
    raise _InterruptedError(f"more than {REDIRECTS} redirections")


def _moved(url: str, location: str) -> str:
    """Where a redirection leads: to a public https address, or within this machine where the first address was here."""
    new = urllib.parse.urljoin(url, location)
    here = _is_loopback(url) and _is_loopback(new) and new.startswith(("http://", "https://"))
    if not here and (not new.startswith("https://") or _is_private(new)):
        raise DownloadError(f"{url} redirects to {new}, which is refused: only public https addresses are followed.")
    return new


def _starting_point(answer: http.client.HTTPResponse, asked: int, file: PublishedFile, url: str) -> int:
    """From which byte the answer goes on; raises DownloadError where it announces another file."""
    partial = answer.status == http.HTTPStatus.PARTIAL_CONTENT
    header = "Content-Range" if partial else "Content-Length"
    wanted = f"bytes {asked}-{file.bytes - 1}/{file.bytes}" if partial else str(file.bytes)
    announced = (answer.headers.get(header) or wanted).strip()
    if announced != wanted:
        raise DownloadError(
            f"{url} is not the published {file.name} of {file.bytes:,} bytes ({header} is {announced}): it is refused."
        )
    return asked if partial else 0


def _copy(
    answer: http.client.HTTPResponse, out: IO[bytes], done: int, file: PublishedFile, progress: Progress | None
) -> None:
    """Write what comes, never more than the published length."""
    since, before = time.monotonic(), done
    while done < file.bytes:
        try:
            piece = answer.read1(PIECE)
        except (http.client.HTTPException, OSError) as error:
            raise _InterruptedError(_plainly(error)) from error
        if not piece:
            raise _InterruptedError(f"the connection ended after {done:,} of {file.bytes:,} bytes")
        if done + len(piece) > file.bytes:
            raise DownloadError(f"the server sends more than the {file.bytes:,} bytes of {file.name}: it is refused.")
        out.write(piece)
        done += len(piece)
        if progress is not None:
            progress(file.name, done, file.bytes)
        if time.monotonic() - since > PATIENCE:
            if done - before < SLOWEST * PATIENCE:
                raise _InterruptedError(f"fewer than {SLOWEST:,} bytes a second come")
            since, before = time.monotonic(), done


def _is_published(path: Path, file: PublishedFile) -> bool:
    """Whether a file has the published checksum."""
    digest = hashlib.sha256() if file.sha256 else hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.md5)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """What opens https and http and nothing else: no file, ftp or data addresses, also after a redirection."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if _is_loopback(url) else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _check_address(url: str, file: PublishedFile) -> None:
    """Accept https; http only to this machine, or to a publisher that has no https and whose SHA-256 is known."""
    published = url == file.url and file.sha256 is not None
    if not (url.startswith("https://") or (url.startswith("http://") and (published or _is_loopback(url)))):
        raise DownloadError(f"{url} is not fetched: give an https:// address.")


def _address(url: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def _is_loopback(url: str) -> bool:
    address = _address(url)
    return address is not None and address.is_loopback


def _is_private(url: str) -> bool:
    address = _address(url)
    return address is not None and not address.is_global


def _plainly(error: BaseException) -> str:
    """Why the network failed, in a few words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "the server does not answer"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _by_hand(file: PublishedFile, part: Path) -> str:
    return (
        f"Without a network here: fetch {file.url} ({file.bytes:,} bytes) elsewhere and put it into "
        f"{str(part.parent)!r}. "
        "With one: run the same command again, it goes on where it stopped."
    )
