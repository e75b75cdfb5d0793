"""Requests of every malformed kind are refused with one sentence, and well-formed ones are read exactly."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpconv.deploy.form_data import MAX_PARTS, files_of
from mlpconv.deploy.guard import Refusal
from mlpconv.deploy.inference_protocol import MAX_JSON, parse_request, response_body
from mlpconv.deploy.metadata import Metadata
from mlpconv.errors import ExportError

OUTPUTS = ("probabilities", "logits", "maps")
MODEL = Metadata("net", "onnx", ("a", "b", "c"), (3, 7, 11), OUTPUTS, min_size=5, any_size=True)
FIXED = Metadata("net", "onnx", ("a", "b", "c"), (3, 7, 11), OUTPUTS[:2], min_size=7, any_size=False)
SHAPE = [2, 3, 7, 11]
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": PIXELS.ravel().tolist()} | changes


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_numbers_and_bytes_are_the_same_pixels() -> None:
    flat = parse_request(body(entry()), None, MODEL)
    nested = parse_request(body(entry(data=PIXELS.tolist())), None, MODEL)
    described = entry(parameters={"binary_data_size": PIXELS.size})
    del described["data"]
    text = body(described)
    binary = parse_request(text + PIXELS.tobytes(), str(len(text)), MODEL)
    for request in (flat, nested, binary):
        assert bytes(request.parts[0]) == PIXELS.tobytes()
        assert (request.shape, request.images, request.outputs) == (tuple(SHAPE), 2, ("probabilities",))


def test_files_keep_their_bytes() -> None:
    contents = [b"abc", b"", b"\x00" * 5]
    blob = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    described = {
        "name": "files", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(blob)},
    }  # fmt: skip
    text = body(described, id="x", outputs=[{"name": "maps", "parameters": {"binary_data": True}}])
    request = parse_request(text + blob, str(len(text)), MODEL)
    assert [bytes(part) for part in request.parts] == contents
    assert (request.id, request.outputs, request.binary) == ("x", ("maps",), {"maps"})


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"", None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        (b"[]", None, "not a JSON object"),
        (b"{}", "3", "the body has 2 bytes"),
        (b"{}", "-1", "must be a number"),
        (b"{}", "9" * 30, "must be a number"),
        (body(), None, "one tensor"),
        (body(entry(), entry()), None, "one tensor"),
        (body(3), None, "one tensor"),
        (body(entry(name="pixels")), None, "no input 'pixels'"),
        (body(entry(datatype="FP32")), None, "accepted: UINT8"),
        (body(entry(shape=[2, 7, 11, 3])), None, r"accepted: \[N, 3, H, W\]"),
        (body(entry(shape="x")), None, "list of numbers"),
        (body(entry(shape=[2, 3, 7, 2**40])), None, "sides of 1"),
        (body(entry(shape=[-2, 3, 7, 11])), None, "sides of 1"),
        (body(entry(shape=[2, 3, 7, 5])), None, "210 numbers"),
        (body(entry(shape=[2, 3, 4, 11])), None, "accepted: at least 5x5"),
        (body(entry(data=[1.5] * PIXELS.size)), None, "integers"),
        (body(entry(data=[256] * PIXELS.size)), None, "integers"),
        (body(entry(data=[[1], 2])), None, "mixes"),
        (body(entry(data="x")), None, "list of 462"),
        (body(entry(parameters=3)), None, "parameters must be"),
        (body(entry(parameters={"binary_data_size": 5})), None, "0 bytes follow"),
        (body(entry(), outputs=[]), None, "outputs must be"),
        (body(entry(), outputs=[{"name": "maps"}, {"name": "maps"}]), None, "no output 'maps' here"),
        (body(entry(), outputs=[{"name": "features"}]), None, "no output 'features'"),
        (body({"name": "files", "datatype": "BYTES", "shape": [1], "data": ["x"]}), None, "as binary data"),
        (b" " * (MAX_JSON + 1), None, "larger than"),
    ],
)
def test_a_malformed_request_says_what_is_wrong(content: bytes, length: str | None, message: str) -> None:
    with pytest.raises(Refusal, match=message) as caught:
        parse_request(content, length, MODEL)
    assert caught.value.status in (400, 413, 422)


def test_a_network_of_one_size_refuses_others() -> None:
    assert parse_request(body(entry()), None, FIXED).images == 2
    with pytest.raises(Refusal, match="accepted: 7x11"):
        parse_request(body(entry(shape=[2, 3, 11, 7])), None, FIXED)


@pytest.mark.parametrize("blob", [b"\xff\xff\xff\xff", b"\x01\x00\x00", b"\x01\x00\x00\x00ab", b"\x01\x00\x00\x00"])
def test_lengths_of_files_must_add_up(blob: bytes) -> None:
    text = body({"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(blob)}})
    with pytest.raises(Refusal, match="do not add up"):
        parse_request(text + blob, str(len(text)), MODEL)


@settings(max_examples=150)
@given(st.binary(max_size=60), st.one_of(st.none(), st.text(max_size=5)))
def test_random_bytes_are_refused(content: bytes, length: str | None) -> None:
    with pytest.raises(Refusal):
        parse_request(content, length, MODEL)


def test_a_response_has_json_then_the_raw_tensors() -> None:
    request = parse_request(
        body(entry(), outputs=[{"name": "maps", "parameters": {"binary_data": True}}, {"name": "logits"}]), None, MODEL
    )
    arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in OUTPUTS}
    parts, length = response_body("net", request, arrays)
    document = json.loads(parts[0])
    assert length == len(parts[0])
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert document["outputs"][1]["data"] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.frombuffer(parts[1], "<f4").reshape(2, 3), arrays["maps"])


FORM = 'multipart/form-data; boundary="a b"'


def form(*contents: bytes) -> bytes:
    parts = [b"--a b\r\nContent-Disposition: form-data\r\n\r\n" + content + b"\r\n" for content in contents]
    return b"".join(parts) + b"--a b--\r\n"


def test_forms_keep_the_bytes_of_their_files() -> None:
    contents = [b"\r\n\r\n--a", b"", b"x\r\n"]
    assert files_of(form(*contents), FORM) == contents
    assert files_of(b"anything", "image/png") == [b"anything"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "image/png", 400),
        (form(b"x"), "multipart/form-data", 400),
        (form(b"x"), "multipart/form-data; boundary=" + "b" * 80, 400),
        (form(b"x")[:-4], FORM, 400),
        (b"--a b--\r\n", FORM, 400),
        (b"--a b\r\nno end of headers\r\n--a b--\r\n", FORM, 400),
        (b"--a b\r\n" + b"h" * 5000 + b"\r\n\r\nx\r\n--a b--\r\n", FORM, 400),
        (form(*[b"x"] * (MAX_PARTS + 1)), FORM, 413),
    ],
)
def test_malformed_forms_are_refused(content: bytes, kind: str, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        files_of(content, kind)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"version": 99}, {"classes": []}, {"classes": [1]}, {"input_size": [3, 0, 5]},
        {"input_size": [4, 7, 7]}, {"outputs": ["maps"]}, {"variant": "x"}, {"decode_options": {"fit": "x"}},
        {"min_size": "7"}, {"any_size": None, "info": 3, "name": None},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_of_the_wrong_kind_are_refused(change: dict[str, Any]) -> None:
    document = json.loads(MODEL.to_json("0" * 64))
    assert Metadata.from_json(json.dumps(document))[0] == MODEL
    if change.get("any_size", 0) is None:
        del document["any_size"]
    with pytest.raises(ExportError):
        Metadata.from_json(json.dumps(document | {k: v for k, v in change.items() if k != "any_size"}))
