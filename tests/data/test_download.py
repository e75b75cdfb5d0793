"""Downloads from a local server that works, disconnects, sends false data or redirects."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlpconv.data import download
from mlpconv.data.catalog import CATALOG, Published, PublishedFile
from mlpconv.data.download import fetch, prepare
from mlpconv.errors import DataError, DownloadError

CONTENT = bytes(range(256)) * 700 + b"the end"


@dataclass
class Server:
    """A local server with a configurable response, and the requests it received."""

    answer: Callable[[BaseHTTPRequestHandler], None]
    address: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def send(handler: BaseHTTPRequestHandler, content: bytes, announced: int | None = None, ranges: bool = True) -> None:
    """Respond to a plain or range request, announcing `announced` bytes."""
    asked, start, total = handler.headers.get("Range"), 0, len(content)
    if asked and ranges:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(total - start if announced is None else announced))
    handler.end_headers()
    handler.wfile.write(content[start:])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(lambda handler: send(handler, CONTENT))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            with suppress(BrokenPipeError, ConnectionResetError):
                state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        state.address = f"http://127.0.0.1:{http.server_address[1]}/set.bin"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()


FILE = PublishedFile("set.bin", "https://example.org/set.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def get(server: Server, folder: Path, **options: object) -> Path:
    return fetch(FILE, folder, url=server.address, timeout=2, **options)  # type: ignore[arg-type]


def test_a_file_is_downloaded_verified_and_renamed(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = get(server, tmp_path / "new" / "folder", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]
    assert seen[-1] == ("set.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_an_existing_file_is_verified_and_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    assert len(server.requests) == 1
    (tmp_path / "set.bin").write_bytes(b"?" + CONTENT[1:])
    with pytest.raises(DownloadError, match="exists but is not the published file: move it away"):
        get(server, tmp_path)
    assert (tmp_path / "set.bin").read_bytes()[:1] == b"?"


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: send(handler, b"?" + CONTENT[1:])
    with pytest.raises(DownloadError, match="its checksum differs, and nothing was kept"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_md5_is_checked_if_there_is_no_sha256(server: Server, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    file = PublishedFile("set.bin", "https://example.org/", len(CONTENT), md5=md5)
    assert fetch(file, tmp_path, url=server.address).read_bytes() == CONTENT
    server.answer = lambda handler: send(handler, CONTENT[::-1])
    with pytest.raises(DownloadError, match="checksum"):
        fetch(file, tmp_path / "other", url=server.address)


@pytest.mark.parametrize("announced", [10, len(CONTENT) + 1, 10**12])
def test_an_unexpected_length_is_refused_before_reading(server: Server, tmp_path: Path, announced: int) -> None:
    server.answer = lambda handler: send(handler, CONTENT, announced)
    with pytest.raises(DownloadError, match="is not the published set.bin"):
        get(server, tmp_path)
    assert not (tmp_path / "set.bin").exists()


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    def some(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + 70_000])

    server.answer = some
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=70000-", "bytes=140000-"]


def test_a_server_that_never_sends_everything_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: send(handler, CONTENT[:1000], len(CONTENT), ranges=False)
    with pytest.raises(DownloadError, match=r"ended after 1,000 of .*Run the same command again to resume.*copy it to"):
        get(server, tmp_path)
    assert len(server.requests) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["set.bin.part"]


def test_a_later_command_resumes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:100_000])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/set.bin", "bytes=100000-")]


def test_a_server_without_ranges_restarts_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 100_000)
    server.answer = lambda handler: send(handler, CONTENT, ranges=False)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [5000, len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_another_file_is_discarded(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * length)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_a_changed_file_on_the_server_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:5000])
    server.answer = lambda handler: send(handler, CONTENT + b"more")
    with pytest.raises(DownloadError, match="Content-Range is bytes 5000-"):
        get(server, tmp_path)


def test_an_endless_response_is_cut_off(server: Server, tmp_path: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(50_000))

    server.answer = endless
    with pytest.raises(DownloadError, match="sends more than"):
        get(server, tmp_path)
    assert not (tmp_path / "set.bin").exists()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= len(CONTENT)


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://example.org/set.bin",
        "data:text/plain,hello",
        "http://example.org/set.bin",
        "http://169.254.169.254/latest",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/set.bin",
        "//example.org/set.bin",
        "",
    ],
)
def test_redirects_to_other_places_are_refused(server: Server, tmp_path: Path, target: str) -> None:
    def lead(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    server.answer = lead
    with pytest.raises(DownloadError, match="refused|redirects"):
        get(server, tmp_path)
    assert not (tmp_path / "set.bin").exists()


def test_a_redirect_within_this_machine_is_followed(server: Server, tmp_path: Path) -> None:
    def lead(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/set.bin":
            handler.send_response(301)
            handler.send_header("Location", "/moved/set.bin")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            send(handler, CONTENT)

    server.answer = lead
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_public_url_may_not_redirect_to_this_machine() -> None:
    for target in ("http://127.0.0.1/x", "https://127.0.0.1/x", "https://[::1]/x", "https://localhost/x"):
        with pytest.raises(DownloadError, match="refused"):
            download._redirect_target("https://example.org/set.bin", target)
    assert download._redirect_target("https://example.org/a", "https://example.com/b") == "https://example.com/b"
    assert download._redirect_target("https://example.org/a/b", "c") == "https://example.org/a/c"


@pytest.mark.parametrize("url", ["http://example.org/set.bin", "file:///etc/passwd", "ftp://x/y", "/etc/passwd", "x"])
def test_only_https_is_requested(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="give an https:// URL"):
        fetch(FILE, tmp_path, url=url)


def test_http_is_accepted_for_a_published_url_with_sha256(tmp_path: Path) -> None:
    url = "http://example.org/set.bin"
    download._check_address(url, PublishedFile("set.bin", url, 5, sha256="0" * 64))
    with pytest.raises(DownloadError, match="https"):
        download._check_address(url, PublishedFile("set.bin", url, 5, md5="0" * 32))


def test_offline_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        prepare(CATALOG["cifar10"], tmp_path)
    sentence = str(caught.value)
    for part in ("could not be downloaded", CATALOG["cifar10"].files[0].url, "170,052,171 bytes", str(tmp_path)):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_server_error_is_not_retried(server: Server, tmp_path: Path, code: int) -> None:
    server.answer = lambda handler: handler.send_error(code)
    with pytest.raises(DownloadError, match=f"the server responds {code}"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: time.sleep(1.5)
    with pytest.raises(DownloadError, match="does not respond|timed out"):
        fetch(FILE, tmp_path, url=server.address, timeout=0.2)
    assert len(server.requests) == 1


def test_a_very_slow_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RATE_WINDOW", 0.3)
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 2)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    server.answer = trickle
    with pytest.raises(DownloadError, match="in 2 attempts|bytes per second"):
        get(server, tmp_path)


def test_a_full_disk_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DataError, match="set.bin needs .* more free bytes in .*: free some space"):
            get(server, tmp_path)
    assert server.requests == []

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=r"cannot be written \(no space left on device\): choose another folder"):
        get(server, tmp_path)
    assert not (tmp_path / "set.bin").exists()


def test_a_folder_that_cannot_be_created_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        get(server, tmp_path / "file" / "below")
    assert server.requests == []


def test_a_data_set_is_downloaded_from_a_mirror(server: Server, tmp_path: Path) -> None:
    files = (FILE, PublishedFile("more.bin", "https://example.org/more.bin", FILE.bytes, FILE.sha256, optional=True))
    entry = Published("toy", "Toy", ("a", "b"), 1, 8, CATALOG["mnist"].counts, "none", "", "Toy/raw", files)
    mirror = server.address.removesuffix("/set.bin")
    assert prepare(entry, tmp_path, mirror=mirror) == [tmp_path / "Toy" / "raw" / "set.bin"]
    assert len(prepare(entry, tmp_path, mirror=mirror + "/", extra=True)) == 2
    assert [path for path, _ in server.requests] == ["/set.bin", "/more.bin"]
    assert prepare(CATALOG["digits"], tmp_path / "none") == []
