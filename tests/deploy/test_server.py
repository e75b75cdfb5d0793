"""The model server in a process of its own: protocol with a real client, human routes, page, metrics, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.servers import Served, connect, read_answer, request, running, serve_command

import mlpconv
from mlpconv.cli import main
from mlpconv.deploy.predictor import Predictor

ROUTE = "/v2/models/digits"


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = serve_command(str(digits_onnx), "--engine", "onnxruntime", "--threads", "1", "--latency", "5")
    with running(words, tmp_path_factory.mktemp("server")) as served:
        yield served


@pytest.fixture(scope="module")
def predictor(digits_onnx: Path) -> Predictor:
    return Predictor(digits_onnx, engine="onnxruntime", threads=1)


def test_triton_s_client_works_unmodified(server: Served, predictor: Predictor, digit_images: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.get_server_metadata()["name"] == "mlpconv"
        assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 1, -1, -1]
        pixels = digit_images[:5]
        for binary in (True, False):
            tensor = triton.InferInput("images", pixels.shape, "UINT8")
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "maps")]
            answer = client.infer("digits", [tensor], outputs=outputs, request_id="a7")
            maps, probabilities = predictor.maps(pixels)
            np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-6)
            np.testing.assert_allclose(answer.as_numpy("maps"), maps, atol=1e-5)
            assert answer.get_response()["id"] == "a7"
        files = triton.InferInput("files", [2], "BYTES")
        files.set_data_from_numpy(np.array([png(pixels[0, 0]), png(pixels[1, 0])], dtype=object))
        answer = client.infer("digits", [files])
        np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities[:2], atol=1e-6)
        with pytest.raises(triton.InferenceServerException, match="Not Found"):
            client.infer("other", [tensor])
    finally:
        client.close()


def test_predict_and_maps_answer_as_the_predictor(
    server: Served, predictor: Predictor, digit_images: np.ndarray
) -> None:
    content = png(digit_images[3, 0])
    expected = predictor.predict(content)[0]
    answer = request(server.port, "POST", "/predict?top=2", content).json()
    assert answer["model"] == "digits"
    assert answer["predictions"][0]["label"] == expected.label
    assert [entry["label"] for entry in answer["predictions"][0]["top"]] == [label for label, _ in expected.top(2)]
    assert answer["predictions"][0]["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    answer = request(server.port, "POST", "/maps?top=1", content).json()
    maps, _ = predictor.maps(digit_images[3:4])
    index = predictor.classes.index(expected.label)
    np.testing.assert_allclose(answer["predictions"][0]["top"][0]["map"], maps[0, index], atol=1e-5)


def test_a_form_has_several_images_of_which_some_may_be_unreadable(server: Served, digit_images: np.ndarray) -> None:
    contents = [png(digit_images[0, 0]), b"nothing", png(digit_images[1, 0])]
    parts = [b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + content for content in contents]
    body = b"\r\n".join(parts) + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answers = request(server.port, "POST", "/predict", body, headers).json()["predictions"]
    assert [min(answer) for answer in answers] == ["confidence", "error", "confidence"]
    assert answers[1]["error"]["code"] == "image"


def test_the_same_image_has_the_same_answer_alone_and_among_others(server: Served, digit_images: np.ndarray) -> None:
    contents = [png(digit_images[index, 0]) for index in range(24)]
    alone = [request(server.port, "POST", "/predict", content).json()["predictions"][0] for content in contents]
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda content: request(server.port, "POST", "/predict", content), contents)
        together = [answer.json()["predictions"][0] for answer in answers]
    assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
    confidences = [[answer["confidence"] for answer in answers] for answers in (alone, together)]
    np.testing.assert_allclose(*confidences, atol=1e-5)


def test_the_pages_and_their_files_ask_no_other_server(server: Served) -> None:
    for path in ("/", "/docs"):
        answer = request(server.port, "GET", path)
        text = answer.body.decode()
        assert answer.status == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert re.findall(r"(?:https?:)?//[\w.]", text) == []
        for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            static = request(server.port, "GET", name)
            assert static.status == 200
            assert re.findall(rb"https?://", static.body) == []


def test_openapi_names_every_route(server: Served) -> None:
    paths = request(server.port, "GET", "/openapi.json").json()["paths"]
    for path, methods in paths.items():
        assert request(server.port, "DELETE", path).status == 405
        if "get" in methods:
            assert request(server.port, "GET", path).status == 200


def test_metrics_count_requests_images_and_batches(server: Served, digit_images: np.ndarray) -> None:
    def images() -> float:
        text = request(server.port, "GET", "/metrics").body.decode()
        assert 'mlpconv_requests_total{code="200"}' in text
        return float(re.findall(r"^mlpconv_images_total (\S+)", text, re.MULTILINE)[0])

    before = images()
    request(server.port, "POST", "/predict", png(digit_images[0, 0]))
    assert images() == before + 1


def test_a_worker_that_dies_or_hangs_is_replaced(digits_onnx: Path, tmp_path: Path, digit_images: np.ndarray) -> None:
    content = png(digit_images[0, 0])
    code = (
        "import sys; from pathlib import Path; from mlpconv.deploy.server import *\n"
        "serve_model(Path(sys.argv[1]), port=0, options=ServeOptions(engine='onnxruntime', threads=1,"
        " compute_seconds=1.0), announce=lambda url: print(url, flush=True))"
    )
    with running([sys.executable, "-c", code, str(digits_onnx)], tmp_path) as served:
        for number, status in ((signal.SIGSTOP, 504), (signal.SIGKILL, 503)):
            worker = workers_of(served.process.pid)[0]
            os.kill(worker, number)
            first = request(served.port, "POST", "/predict", content)
            assert first.status in (status, 200)
            for _ in range(100):
                if request(served.port, "GET", "/v2/health/ready").status == 200:
                    break
                time.sleep(0.1)
            assert request(served.port, "POST", "/predict", content).status == 200
            assert worker not in workers_of(served.process.pid)
        assert served.stop() == 0


def workers_of(pid: int) -> list[int]:
    """The process ids of a server's workers."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigterm_finishes_what_was_accepted(digits_onnx: Path, tmp_path: Path, digit_images: np.ndarray) -> None:
    content = png(digit_images[0, 0])
    words = serve_command(str(digits_onnx), "--engine", "onnxruntime", "--threads", "1", "--latency", "5")
    with running(words, tmp_path) as served, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(request, served.port, "POST", "/predict", content) for _ in range(48)]
        while not any(answer.done() for answer in answers):
            time.sleep(0.001)
        assert served.stop() == 0
        assert {answer.result().status for answer in answers} == {200}
        assert [entry for entry in served.entries() if entry.get("status") not in (200, None)] == []


def test_a_client_that_has_connected_is_answered_before_the_end(digits_onnx: Path, tmp_path: Path) -> None:
    """From the last moment of listening on, new connections are ignored, and made ones may still ask."""
    code = (
        "import sys; from pathlib import Path; from mlpconv.deploy.limits import Limits; from mlpconv.deploy.server "
        "import *\nserve_model(Path(sys.argv[1]), port=0, options=ServeOptions(engine='onnxruntime', threads=1),"
        " limits=Limits(linger_seconds=1), announce=lambda url: print(url, flush=True))"
    )
    with running([sys.executable, "-c", code, str(digits_onnx)], tmp_path) as served:
        with connect(served.port) as early:
            served.process.send_signal(signal.SIGTERM)
            time.sleep(1.6)
            with pytest.raises(OSError, match="timed out|refused"):
                connect(served.port, timeout=0.1)
            early.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = read_answer(early)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert served.process.wait(60) == 0


def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: Path, digits_onnx: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(digits_onnx.read_bytes()[:-7])
    done = subprocess.run(serve_command(str(path)), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "damaged" in done.stderr


@pytest.mark.parametrize("option", ["--workers", "--threads", "--batch-size", "--max-body", "--max-connections"])
def test_a_count_below_one_is_refused_by_the_name_of_the_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "x.onnx", option, "0"]) == 2
    assert capsys.readouterr().err == f"mlpconv: {option} is 0; expected an integer of at least 1.\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--port", "99999"], 2, "The port is 99999"),
        (["--host", "no.such.invalid"], 1, "no address 'no.such.invalid'"),
    ],
)
def test_an_address_that_cannot_be_used_is_known_before_the_export(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlpconv.deploy.exporting.export", None)
    assert main(["serve", "digits", *words]) == code
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence(server: Served, digits_onnx: Path) -> None:
    words = [*serve_command(str(digits_onnx))[:-2], "--port", str(server.port)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"mlpconv: Port {server.port} of 127.0.0.1 is in use: stop the other server, or choose another port.\n"
    )


BLOCKED = """
import sys
for name in ("torch", "matplotlib", "onnx"):
    sys.modules[name] = None
from mlpconv.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_server_runs_without_torch(digits_onnx: Path, tmp_path: Path, digit_images: np.ndarray) -> None:
    words = ["serve", str(digits_onnx), "--engine", "onnxruntime", "--threads", "1", "--port", "0"]
    with running([sys.executable, "-c", BLOCKED, *words], tmp_path) as served:
        assert request(served.port, "POST", "/predict", png(digit_images[0, 0])).status == 200
        modules = [Path(f"/proc/{pid}/maps").read_text() for pid in workers_of(served.process.pid)]
        assert modules
        assert all("libtorch" not in text for text in modules)
        assert served.stop() == 0


def test_the_documented_defaults_are_the_real_ones() -> None:
    from mlpconv.deploy.limits import Limits
    from mlpconv.deploy.server import ServeOptions

    page = (Path(mlpconv.__file__).parents[2] / "docs" / "serve.md").read_text()
    section = page.split("\n## Limits\n")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\d.,]+)", section, re.MULTILINE))
    real = {**vars(Limits()), **{name: value for name, value in vars(ServeOptions()).items() if name in documented}}
    assert {name: float(value.replace(",", "")) for name, value in documented.items()} == real
    assert len(documented) > len(vars(Limits()))


def test_errors_are_json_with_an_id_that_the_log_has(server: Served) -> None:
    answer = request(server.port, "POST", "/predict", b"nothing")
    assert answer.status == 422
    assert set(answer.json()) == {"code", "message", "id"}
    assert answer.json()["id"] == answer.headers["x-request-id"]
    for _ in range(100):  # the log is written after the answer
        if json.dumps(answer.json()["id"]) in server.log.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the id of the error is not in the log")
