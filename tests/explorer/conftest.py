"""The page in a real browser: a server in a thread, and Chromium driven by playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.page import serving

import mlpconv
from mlpconv.explorer import Subject, make_app
from mlpconv.explorer.held_out import find_held_out, some_images

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def digits() -> Subject:
    classifier = mlpconv.load("digits")
    subject = Subject(classifier, "digits", *find_held_out(classifier, None, None))
    for name, pixels in some_images(classifier, subject.held_out):
        subject.add(pixels, name)
    return subject


@pytest.fixture(scope="session")
def address(digits: Subject) -> Iterator[str]:
    with serving(make_app(digits)) as url:
        yield url


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}: the page is not tested in a browser")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails the test for any error, any message of the console and any request to another host."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    troubles: list[str] = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on(
        "console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("request", lambda request: None if request.url.startswith(
        ("http://127.0.0.1:", "file:", "data:", "blob:")) else troubles.append(request.url))  # fmt: skip
    opened.troubles = troubles
    yield opened
    context.close()
    assert troubles == []
