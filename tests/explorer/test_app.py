"""The routes: what they answer, and what they refuse."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import mlpconv
from mlpconv.errors import UsageError
from mlpconv.explorer import Subject, make_app
from mlpconv.explorer import app as routes

BYTES = {"content-type": "application/octet-stream"}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def client(digits: Subject) -> TestClient:
    return TestClient(make_app(digits), base_url="http://127.0.0.1")


def test_the_page_and_its_modules_are_served_with_a_strict_policy(client: TestClient) -> None:
    page = client.get("/")
    assert 'data-network="yes"' in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for name, content in routes.static_files().items():
        answer = client.get(f"/static/{name}")
        assert answer.content == content
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/static/../app.py").status_code == 404


def test_the_playground_alone_has_no_numbers_of_a_network() -> None:
    alone = TestClient(make_app(None))
    assert 'data-network="no"' in alone.get("/").text
    assert alone.get("/api/model").status_code == 404


def test_no_page_or_module_names_another_host() -> None:
    for name, content in routes.static_files().items():
        text = content.decode()
        assert "innerHTML" not in text
        assert [
            word for word in text.split() if "://" in word and "w3.org/2000/svg" not in word and "file://" not in word
        ] == [], name


def test_the_model_outputs_and_weights_are_those_of_torch(client: TestClient, digits: Subject) -> None:
    model = client.get("/api/model").json()
    last = model["steps"][-1]["id"]
    logits = np.frombuffer(client.get(f"/api/outputs?image=1&edits=&steps={last}").content)
    expected = digits.classifier.logits(digits.pixels[1][None])[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    conv = digits.classifier.model.get_submodule("blocks.0.convs.0")
    weights = np.frombuffer(client.get("/api/weights?step=1&edits=").content)
    np.testing.assert_array_equal(weights, np.r_[conv.weight.detach().numpy().ravel(), conv.bias.detach().numpy()])
    one = np.frombuffer(client.get("/api/weights?step=1&edits=&filter=5").content)
    np.testing.assert_array_equal(one, np.r_[conv.weight[5].detach().numpy().ravel(), conv.bias[5].item()])
    assert client.get("/api/weights?step=1&filter=32").status_code == 422
    assert model["classes"] == list(digits.classifier.classes)


def test_several_steps_come_in_the_order_of_the_request(client: TestClient, digits: Subject) -> None:
    both = np.frombuffer(client.get("/api/outputs?image=0&steps=3,1").content)
    third, first = digits.outputs(0, "", [3, 1])
    np.testing.assert_array_equal(both, np.r_[third.numpy().ravel(), first.numpy().ravel()])


def test_an_image_that_is_sent_has_the_pixels_of_the_package() -> None:
    subject = Subject(mlpconv.load("nin_cifar10"), "nin_cifar10")
    rng = np.random.default_rng(5)
    picture = png(rng.integers(0, 255, (61, 47, 3), dtype=np.uint8))
    client = TestClient(make_app(subject))
    answer = client.post("/api/images?name=%3Cb%3Ecat%0A.png", content=picture, headers=BYTES)
    assert answer.json()["images"] == ["<b>cat\\n.png"]
    sent = np.frombuffer(client.get("/api/pixels?image=0").content, np.uint8)
    np.testing.assert_array_equal(sent, subject.classifier.pixels(picture).numpy().ravel())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        png(np.random.default_rng(1).integers(0, 255, (7, 7, 3), dtype=np.uint8))[:90],
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/images", content=body, headers=BYTES)
    assert answer.status_code == 422
    assert answer.json()["message"].count("\n") == 0
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("size", [(1, 1), (4096, 3)])
def test_images_of_extreme_sizes_are_resized(size: tuple[int, int]) -> None:
    subject = Subject(mlpconv.load("digits"), "digits")
    answer = TestClient(make_app(subject)).post("/api/images", content=png(np.full(size, 99, np.uint8)), headers=BYTES)
    assert answer.status_code == 200
    assert subject.pixels[0].shape == (1, 8, 8)


def test_a_body_without_end_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_BODY", 1000)
    sent = []

    def endless() -> Any:
        for _ in range(100):
            sent.append(100)
            yield bytes(100)

    answer = client.post("/api/images", content=endless(), headers=BYTES)
    assert answer.status_code == 422
    assert "MiB" in answer.json()["message"]


def test_a_form_of_another_site_cannot_add_an_image(client: TestClient) -> None:
    answer = client.post("/api/images", content=png(np.zeros((8, 8), np.uint8)), headers={"content-type": "text/plain"})
    assert answer.status_code == 422


def test_there_is_an_end_to_images(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpconv.explorer.subject.MAX_IMAGES", len(digits.names))
    with pytest.raises(UsageError, match="images already"):
        digits.add(np.zeros((8, 8), np.uint8), "one more")


@pytest.mark.parametrize(
    "address",
    ["outputs?image=99&steps=1", "outputs?image=x&steps=1", "outputs?image=0&steps=999", "outputs?image=0&steps=-1",
     "outputs?image=0&steps=1&edits=zzz", "weights?step=0", "weights?step=12345678901", "weights?step=٣", "pixels",
     "pixels?image=77", "accuracy?edits=q"],
)  # fmt: skip
def test_a_wrong_request_is_answered_with_one_sentence(client: TestClient, address: str) -> None:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == 422
    assert set(answer.json()) == {"code", "message"}


def test_a_network_without_held_out_images_says_so() -> None:
    client = TestClient(make_app(Subject(mlpconv.load("digits"), "digits", None, "Nothing is held out.")))
    assert client.get("/api/model").json()["heldOut"] == {"count": 0, "why": "Nothing is held out."}
    assert client.get("/api/accuracy").json()["message"] == "Nothing is held out."


def test_the_input_is_preprocessed_as_in_prediction(digits: Subject) -> None:
    expected = digits.classifier.preprocessing(digits.pixels[2][None])
    torch.testing.assert_close(digits.input(2), expected.double())


def test_a_second_network_has_routes_of_its_own_and_gets_every_image() -> None:
    first, second = (Subject(mlpconv.load(name), name) for name in ("digits", "nin_mnist"))
    client = TestClient(make_app(first, second))
    assert 'data-other="yes"' in client.get("/").text
    assert client.get("/api/other/model").json()["name"] == "nin_mnist"
    assert client.post("/api/images?name=x", content=png(np.eye(8, dtype=np.uint8)), headers=BYTES).status_code == 200
    assert (first.names, second.names) == (["x"], ["x"])
    assert len(client.get("/api/other/pixels?image=0").content) == 28 * 28
