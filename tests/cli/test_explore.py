"""`mlpconv explore`: what it serves and exports, and its one-sentence errors."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpconv.deploy
from mlpconv.cli import main
from mlpconv.errors import ServerError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what would be served instead of serving it."""
    calls: list[Any] = []

    def serve(app: Any, *, port: int, announce: Any, **_: Any) -> None:
        calls.append((app, port))
        announce(f"http://127.0.0.1:{port}/")

    monkeypatch.setattr(mlpconv.deploy, "serve_app", serve, raising=False)
    return calls


def test_the_page_is_announced_and_served(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "digits", "--port", "8499"]) == 0
    assert "http://127.0.0.1:8499/" in capsys.readouterr().out
    paths = {route.path for route in served[0][0].routes}
    assert {"/", "/api/model", "/api/outputs"} <= paths


def test_without_a_model_there_is_the_playground_alone(served: list[Any]) -> None:
    assert main(["explore"]) == 0
    assert {route.path for route in served[0][0].routes} == {"/", "/static/{name}"}
    assert served[0][1] == 8230


def test_a_second_explorer_takes_a_free_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ports: list[int] = []

    def serve(app: Any, *, port: int, announce: Any, **_: Any) -> None:
        ports.append(port)
        if port:
            raise ServerError(f"Port {port} of 127.0.0.1 is in use.")

    monkeypatch.setattr(mlpconv.deploy, "serve_app", serve, raising=False)
    assert main(["explore"]) == 0
    assert ports == [8230, 0]
    assert main(["explore", "--port", "8230"]) == 1
    assert "in use" in capsys.readouterr().err


def test_images_are_shown_under_their_names_and_unreadable_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "five.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["explore", "digits", str(tmp_path), "--export", str(tmp_path / "site")]) == 1
    assert "broken.png" in capsys.readouterr().err
    text = (tmp_path / "site" / "network.js").read_text()
    assert '"images": ["five.png"]' in text


def test_more_images_than_the_page_takes_are_said_and_an_unreadable_folder_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpconv.explorer.subject.MAX_IMAGES", 2)
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8), 9).save(tmp_path / f"{name}.png")
    words = ["explore", "digits", str(tmp_path), "--force", "--export", str(tmp_path / "site")]
    assert main(words) == 0
    assert "skipped: all but the first 2 of 3 images." in capsys.readouterr().err
    (tmp_path / "c.png").unlink()
    (tmp_path / "c.png").symlink_to("nowhere")
    assert main(words) == 1


def test_the_accuracy_is_measured_on_the_data_that_the_user_names(tmp_path: Path) -> None:
    digits = mlpconv.open_data("digits").split("test")
    for index in range(40):
        folder = tmp_path / "photos" / "test" / str(digits.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[index, 0]).save(folder / f"{index}.png")
    (tmp_path / "photos" / "train").mkdir()
    for label in range(10):
        (tmp_path / "photos" / "train" / str(label)).mkdir()
        image = digits.images[np.flatnonzero(digits.labels == label)[-1], 0]
        Image.fromarray(image).save(tmp_path / "photos" / "train" / str(label) / "a.png")
    words = ["explore", "digits", "--evaluate", str(tmp_path / "photos"), "--export", str(tmp_path / "site")]
    assert main(words) == 0
    assert '"heldOut": {"count": 40' in (tmp_path / "site" / "network.js").read_text()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["no-such-model"], 1, "no-such-model"),
        (["digits", "no-such-image.png"], 2, "no-such-image.png"),
        (["digits", "--evaluate", "no-such-data"], 2, "no-such-data"),
        (["digits", "--data", "mnist"], 2, "'mnist' is no folder; did you mean --evaluate mnist?"),
        (["digits", "--data", ".", "--evaluate", "photos"], 2, "'photos' is none (digits, "),
        (["--compare", "digits"], 2, "--compare needs a MODEL"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(
    words: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *words]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_broken_model_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert main(["explore", str(tmp_path / "model.safetensors")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_server_answers_on_this_machine_and_ends_with_ctrl_c() -> None:
    command = [sys.executable, "-m", "mlpconv", "explore", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[4]
            with urllib.request.urlopen(address, timeout=30) as page:
                assert b"mlpconv" in page.read()
            foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="421") as refused:
                urllib.request.urlopen(foreign, timeout=30)
            refused.value.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
