"""Classify image files with a running server: python examples/client.py http://127.0.0.1:8000 photo.jpg ..."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

TRIES = 5


def classify(url: str, image: bytes) -> dict[str, Any]:
    """Return the server's answer for an encoded image; wait and try again while the server is busy."""
    request = Request(f"{url.rstrip('/')}/predict", data=image, headers={"Content-Type": "application/octet-stream"})
    for _ in range(TRIES):
        try:
            with urlopen(request, timeout=30) as response:
                prediction: dict[str, Any] = json.load(response)["predictions"][0]
        except HTTPError as error:
            answer: dict[str, Any] = json.load(error)
            if error.code != 503:
                return answer
            time.sleep(float(error.headers.get("Retry-After", "1")))
        else:
            return prediction
    return answer


def main() -> None:
    """Print one line per image."""
    url, *files = sys.argv[1:]
    for file in files:
        answer = classify(url, Path(file).read_bytes())
        print(file, answer.get("label") or answer["message"], answer.get("confidence", ""))


if __name__ == "__main__":
    main()
