"""Download the published files: the only code of this package that uses the network."""

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
from functools import partial
from pathlib import Path
from typing import IO

from mlpconv.data.catalog import Published, PublishedFile
from mlpconv.errors import DataError, DownloadError
from mlpconv.files import fsync_folder

__all__ = ["Progress", "fetch", "prepare", "target_folder"]

TIMEOUT = 30.0  # seconds without a response
CHUNK = 1 << 16
MAX_ATTEMPTS = 50  # each resumes the previous one; an attempt that receives nothing is the last
MIN_RATE, RATE_WINDOW = 1024, 60.0  # bytes per second, measured over this many seconds
MAX_REDIRECTS = 5
REDIRECT_CODES = (301, 302, 303, 307, 308)

Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in total


class _InterruptedError(Exception):
    """The connection ended early; the bytes received so far are kept."""


def prepare(
    entry: Published, to: Path, *, mirror: str | None = None, extra: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Download the files of a data set into a folder, verify them, and return their paths.

    Existing files are verified and kept. `mirror` is the URL of another folder with the same files; `extra` includes
    the optional files. Raises DownloadError for network failures, DataError for disk failures.
    """
    folder = target_folder(entry, to)
    paths = []
    for file in entry.files:
        if extra or not file.optional:
            url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
            paths.append(fetch(file, folder, url=url, progress=progress))
    return paths


def target_folder(entry: Published, to: Path) -> Path:
    """Return the folder for the files of a data set: the root for archives, otherwise the official folder."""
    return to if entry.archive else to / entry.folder


def fetch(
    file: PublishedFile,
    folder: Path,
    *,
    url: str | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """Download one published file: resume from NAME.part, limit its size, and rename it after verification.

    Raises DownloadError if it is unavailable or differs from the published file, DataError if it cannot be written.
    """
    url = url or file.url
    target, part = folder / file.name, folder / f"{file.name}.part"
    _check_address(url, file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if target.stat().st_size == file.bytes and _is_published(target, file):
                return target
            raise DownloadError(f"{str(target)!r} exists but is not the published file: move it away first.")
        missing = file.bytes - _length(part) - shutil.disk_usage(folder).free
        if missing > 0:
            raise DataError(f"{file.name} needs {missing:,} more free bytes in {str(folder)!r}: free some space.")
        _complete(part, file, url, progress, timeout)
        os.replace(part, target)
        fsync_folder(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{str(target)!r} cannot be written ({reason}): choose another folder with --to.") from error
    return target


def _complete(part: Path, file: PublishedFile, url: str, progress: Progress | None, timeout: float) -> None:
    """Complete and verify the part file, resuming as long as each attempt receives more bytes."""
    for _ in range(MAX_ATTEMPTS):
        start = _length(part)
        try:
            _receive(part, file, url, progress, timeout)
        except _InterruptedError as error:
            if _length(part) > start:
                continue
            raise DownloadError(f"{file.name} could not be downloaded ({error}). {_advice(file, part)}") from error
        if _is_published(part, file):
            return
        part.unlink()
        if start == 0:
            raise DownloadError(
                f"{url} is not the published {file.name}: its checksum differs, and nothing was kept. "
                f"{_advice(file, part)}"
            )
    raise DownloadError(f"{file.name} could not be downloaded in {MAX_ATTEMPTS} attempts. {_advice(file, part)}")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(part: Path, file: PublishedFile, url: str, progress: Progress | None, timeout: float) -> None:
    """Append to the part file from one request; raise _InterruptedError if the connection ends early."""
    done = _length(part)
    if done > file.bytes:
        part.unlink()
        done = 0
    if done == file.bytes:
        return
    with _request(url, done, timeout) as response:
        done = _start_of_response(response, done, file, url)
        with open(part, "r+b" if done else "wb") as out:
            out.seek(done)
            _copy(response, out, done, file, progress)
            out.flush()
            os.fsync(out.fileno())


def _request(url: str, start: int, timeout: float) -> http.client.HTTPResponse:
    """Request a file from byte `start`, following and checking each redirect."""
    headers = {"User-Agent": "mlpconv", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    for _ in range(MAX_REDIRECTS):
        try:
            response: http.client.HTTPResponse = _opener(url).open(
                urllib.request.Request(url, headers=headers),  # noqa: S310  (the opener supports only http and https)
                timeout=timeout,
            )
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return _request(url, 0, timeout)
            if error.code not in REDIRECT_CODES:
                raise _InterruptedError(f"the server responds {error.code} {error.reason}") from error
            url = _redirect_target(url, error.headers.get("Location", ""))
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise _InterruptedError(_reason(error)) from error
        else:
            return response
    raise _InterruptedError(f"more than {MAX_REDIRECTS} redirects")


def _redirect_target(url: str, location: str) -> str:
    """Return the URL of a redirect if it is public https, or stays on this machine; otherwise raise DownloadError."""
    target = urllib.parse.urljoin(url, location)
    local = _is_loopback(url) and _is_loopback(target) and target.startswith(("http://", "https://"))
    if not local and (not target.startswith("https://") or _is_private(target)):
        raise DownloadError(f"{url} redirects to {target}, which is refused: only public https URLs are followed.")
    return target


def _start_of_response(response: http.client.HTTPResponse, start: int, file: PublishedFile, url: str) -> int:
    """Return the byte at which the response starts; raise DownloadError if it announces another file."""
    partial = response.status == http.HTTPStatus.PARTIAL_CONTENT
    header = "Content-Range" if partial else "Content-Length"
    expected = f"bytes {start}-{file.bytes - 1}/{file.bytes}" if partial else str(file.bytes)
    announced = (response.headers.get(header) or expected).strip()
    if announced != expected:
        raise DownloadError(
            f"{url} is not the published {file.name} of {file.bytes:,} bytes ({header} is {announced}): try a mirror."
        )
    return start if partial else 0


def _copy(
    response: http.client.HTTPResponse, out: IO[bytes], done: int, file: PublishedFile, progress: Progress | None
) -> None:
    """Write the response, at most up to the published length."""
    window_start, done_at_start = time.monotonic(), done
    while done < file.bytes:
        try:
            chunk = response.read1(CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _InterruptedError(_reason(error)) from error
        if not chunk:
            raise _InterruptedError(f"the connection ended after {done:,} of {file.bytes:,} bytes")
        if done + len(chunk) > file.bytes:
            raise DownloadError(f"the server sends more than the {file.bytes:,} bytes of {file.name}: try a mirror.")
        out.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(file.name, done, file.bytes)
        if time.monotonic() - window_start > RATE_WINDOW:
            if done - done_at_start < MIN_RATE * RATE_WINDOW:
                raise _InterruptedError(f"the server sends fewer than {MIN_RATE:,} bytes per second")
            window_start, done_at_start = time.monotonic(), done


def _is_published(path: Path, file: PublishedFile) -> bool:
    """Return whether a file has the published checksum."""
    algorithm = hashlib.sha256 if file.sha256 else partial(hashlib.md5, usedforsecurity=False)
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, algorithm)
    return digest.hexdigest() == (file.sha256 or file.md5)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return an opener for https and http only, so that no file, ftp or data URL is opened, even by a redirect."""
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
    """Accept https; accept http only to this machine, or for a published http URL with a known SHA-256."""
    published = url == file.url and file.sha256 is not None
    if not (url.startswith("https://") or (url.startswith("http://") and (published or _is_loopback(url)))):
        raise DownloadError(f"{url} is refused: give an https:// URL.")


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


def _reason(error: BaseException) -> str:
    """Return a short reason for a network failure."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "the server does not respond"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _advice(file: PublishedFile, part: Path) -> str:
    return (
        f"Run the same command again to resume, or without network access, download {file.url} ({file.bytes:,} bytes) "
        f"on another machine and copy it to {str(part.parent)!r}."
    )
