"""The speed of the page of `mlpconv explore`, in Chromium, and its pictures in the documents.

For each network: time to the first paint and until a cell is explained, milliseconds of the page's work for a hover,
milliseconds until an edit is drawn, and seconds of the accuracy on held-out images. Site sizes are compressed.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import spread, write_result

NETWORKS = ("digits", "nin_cifar10", "squeezenet")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
PICTURES = Path(__file__).resolve().parents[1] / "docs" / "images"
VIEWS = {
    "explore-network": "#/network?image=2&cell=2.5.3.4",
    "explore-arithmetic": "#/arithmetic?in=6x6x3&a=c3.4.p1-r-c1.2&cell=a1.3.2.2",
}
HOVER = """async () => {
  const pads = [...document.querySelectorAll(".layers .tiles")], times = [];
  for (let i = 0; i < 400; i++) {
    const pad = pads[(i * 7) % pads.length], box = pad.getBoundingClientRect();
    const place = {clientX: box.left + Math.random() * box.width, clientY: box.top + Math.random() * box.height};
    const start = performance.now();
    pad.dispatchEvent(new PointerEvent("pointermove", {...place, bubbles: true}));
    document.body.offsetHeight;
    times.push(performance.now() - start);
    await new Promise((resume) => setTimeout(resume));
  }
  return times.sort((a, b) => a - b);
}"""
EDIT = """async (edit) => {
  const start = performance.now(), view = document.querySelector(".network");
  location.hash = `#/network?edits=${edit}`;
  const turn = () => new Promise((resume) => requestAnimationFrame(resume));
  do await turn(); while (view.hasAttribute("aria-busy") || !document.querySelector(".done li"));
  const time = performance.now() - start;
  location.hash = "#/network";
  do await turn(); while (view.hasAttribute("aria-busy") || document.querySelector(".done li"));
  return time;
}"""


@contextmanager
def served(network: str) -> Iterator[str]:
    """Serve a network in another process; yield its address."""
    command = [sys.executable, "-m", "mlpconv", "explore", network, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        try:
            yield line.split()[4]
        finally:
            process.terminate()


def measure_page(browser: Any, network: str) -> dict[str, Any]:
    """Return the measurements of one network."""
    with served(network) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(".inspector h3:not(:empty)")
        ready = time.perf_counter() - start
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        hovers = page.evaluate(HOVER)
        steps = page.evaluate("fetch('api/model').then((answer) => answer.json())")["steps"]
        convs = [step["id"] for step in steps if step["op"] == "conv"]
        edits = {"first": f"s{convs[0]}.1:0", "middle": f"s{convs[len(convs) // 2]}.1:0"}
        edited = {name: spread([page.evaluate(EDIT, edit) for _ in range(5)]) for name, edit in edits.items()}
        answer = time.perf_counter()
        accuracy = page.evaluate("fetch('api/accuracy?edits=').then((answer) => answer.json())")
        evaluated = {"s": time.perf_counter() - answer, "n": accuracy["n"]} if "n" in accuracy else None
        page.close()
    return {
        "first_paint_ms": paint,
        "ready_s": ready,
        "hover_ms": {"n": len(hovers), "median": hovers[len(hovers) // 2], "p95": hovers[int(0.95 * len(hovers))]},
        "edit_ms": edited,
        "accuracy": evaluated,
        "site_bytes": site_size(network),
    }


def site_size(network: str) -> int:
    """Return the compressed bytes of an exported site."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlpconv", "explore", network, "--export", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return sum(len(gzip.compress(file.read_bytes())) for file in Path(folder).iterdir())


def take_pictures(browser: Any) -> None:
    """Write the pictures of the documents."""
    with served("digits") as address:
        for name, view in VIEWS.items():
            page = browser.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=1.25)
            page.goto(address + view)
            page.wait_for_selector(".inspector h3:not(:empty)")
            page.wait_for_timeout(500)
            page.screenshot(path=PICTURES / f"{name}.png")
            page.close()


def main() -> None:
    """Measure each network and write results/explore.json, or take the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", action="store_true", help="write docs/images/explore-*.png instead")
    pictures = parser.parse_args().pictures
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        if pictures:
            take_pictures(browser)
            return
        rows = {network: measure_page(browser, network) for network in NETWORKS}
    for network, row in rows.items():
        print(network, row)
    print(f"written to {write_result('explore', rows)}")


if __name__ == "__main__":
    main()
