"""Damaged and hostile model files are refused with one sentence, with bounded work and memory, and nothing runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.work import within

from mlpconv import inference, modelfile
from mlpconv.errors import ModelFileError
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

FLIPS = 500
CALLS = 1_000_000
MEBIBYTES = 32


def good_file() -> bytes:
    """Return a small valid model file: 3 classes, grey images of 7x11."""
    path = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"mlpconv-{os.getpid()}-{random.random()}.safetensors"
    torch.manual_seed(3)
    model = create_model("conv_tiny", width=0.25, num_classes=3, in_channels=1)
    preprocessing = Preprocessing.create(["standardize"], 1, (7, 11))
    preprocessing.fit(torch.randint(0, 256, (5, 1, 7, 11), dtype=torch.uint8))
    try:
        modelfile.save(path, model, preprocessing, classes=["a", "b", "c"], input_size=(1, 7, 11), info={"seed": 3})
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


GOOD = good_file()
LENGTH = int.from_bytes(GOOD[:8], "little")
HEADER: dict[str, Any] = json.loads(GOOD[8 : 8 + LENGTH])
DATA = GOOD[8 + LENGTH :]
DOCUMENT: dict[str, Any] = json.loads(HEADER["__metadata__"]["mlpconv"])
FIRST = min(n for n in HEADER if n.startswith("model.") and len(HEADER[n]["shape"]) == 4)


def build(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_header(**changes: Any) -> bytes:
    return build(HEADER | changes)


def with_entry(name: str = FIRST, **changes: Any) -> bytes:
    return build(HEADER | {name: HEADER[name] | changes})


def with_document(**changes: Any) -> bytes:
    """Return the file with a changed description and a valid digest, as a hostile author would write it."""
    document = DOCUMENT | changes | {"sha256": "0" * 64}
    return sealed({key: value for key, value in document.items() if value is not ...})


def sealed(document: Any, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    import hashlib

    tensors = safetensors.torch.load(GOOD) if tensors is None else tensors
    text = document if isinstance(document, str) else json.dumps(document)
    content = safetensors.torch.save(tensors, metadata={"mlpconv": text})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


def model_config(**changes: Any) -> dict[str, Any]:
    return {"model": DOCUMENT["model"] | changes}


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> bytes:
    tensors = safetensors.torch.load(GOOD)
    change(tensors)
    return sealed(DOCUMENT | {"sha256": "0" * 64}, tensors)


def many_tensors(count: int) -> bytes:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return build(b"{" + b",".join(b'"%d":%s' % (i, entry) for i in range(count)) + b"}", b"")


def one_tensor(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return build({"x": entry}, b"\0" * 8)


def nest(depth: int) -> bytes:
    return build(b'{"a":' * depth + b"1" + b"}" * depth, b"")


def deep_document(depth: int) -> str:
    return json.dumps(DOCUMENT).replace('"seed": 3', '"seed": ' + "[" * depth + "]" * depth)


BLOCK = DOCUMENT["model"]["blocks"][0]
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty or cut off"),
    "one byte": (lambda: b"\x08", "empty or cut off"),
    "zeros": (lambda: b"\0" * 5000, "pickle is never read"),
    "text": (lambda: b"hello, this is a text and not a model\n" * 9, "pickle is never read"),
    "header of 2^60": (lambda: struct.pack("<Q", 1 << 60) + GOOD[8:], "cut off"),
    "header of 2^63-1": (lambda: struct.pack("<Q", (1 << 63) - 1) + GOOD[8:], "cut off"),
    "header of 2^64-1": (lambda: struct.pack("<Q", (1 << 64) - 1) + GOOD[8:], "cut off"),
    "header one byte too long": (lambda: struct.pack("<Q", len(GOOD) - 7) + GOOD[8:], "cut off"),
    "header of 99 MB": (lambda: build(b'{"a":"' + b"x" * 99_000_000 + b'"}', b""), "has a header of 99,000,008 bytes"),
    "header at the limit": (lambda: build(b'{"a":"' + b"x" * ((2 << 20) - 8) + b'"}', b""), "not dtype, shape and"),
    "wide letters": (lambda: build(b'{"a":"' + b"x" * 2_000_000 + "😀".encode() + b'"}', b""), "not dtype, shape"),
    "10^7 tensors": (lambda: many_tensors(40_000), "header of 2,"),
    "30,000 tensors": (lambda: many_tensors(25_000), "more values than any"),
    "values at the limit": (lambda: build(b'{"a":[' + b"15," * 99_000 + b"1]}", b""), "not dtype, shape and offsets"),
    "values beyond the limit": (lambda: build(b'{"a":[' + b"15," * 101_000 + b"1]}", b""), "more values than any"),
    "fractions": (lambda: build(b'{"a":[' + b"1.5," * 99_000 + b"1]}", b""), "1.5 is not accepted"),
    "fractions in the description": (lambda: with_document(model={"x": [0.5] * 99_000}), "far more layers"),
    "10,001 tensors": (lambda: many_tensors(10_001), "has 10,001 tensors, at most 10,000"),
    "10^6 lists": (lambda: build(b'{"a":[' + b"[]," * 600_000 + b"1]}", b""), "more values than any"),
    "lists at the limit": (lambda: build(b'{"a":[' + b"[]," * 34_000 + b"1]}", b""), "not dtype, shape and offsets"),
    "objects at the limit": (lambda: build(b'{"a":[' + b"{}," * 34_000 + b"1]}", b""), "not dtype, shape and offsets"),
    "10^5 deep": (lambda: nest(100_000), "more values than any|nested"),
    "10^4 deep": (lambda: nest(10_000), "nested too deeply"),
    "40 deep": (lambda: nest(40), "nested more than 32"),
    "not JSON": (lambda: build(b"{not json}"), "not valid JSON"),
    "a list": (lambda: build(b"[1]"), "cut off, or is not"),
    "UTF-16": (lambda: build('{"a":1}'.encode("utf-16-le")), "not valid JSON"),
    "bytes that are no text": (lambda: build(b'{"\xff\xfe":1}'), "not valid JSON"),
    "a name twice": (lambda: build(b'{"a":1,"a":2}', b""), "a key occurs twice"),
    "NaN": (lambda: build(b'{"a":NaN}', b""), "NaN is not accepted"),
    "1e400": (lambda: build(b'{"a":1e400}', b""), "1e400 is not accepted"),
    "1e400 in the description": (
        lambda: sealed(json.dumps(DOCUMENT).replace('"seed": 3', '"seed": 1e400')),
        "too large",
    ),
    "10^5 digits": (lambda: build(b'{"a":' + b"9" * 100_000 + b"}", b""), "not valid JSON"),
    "metadata a list": (lambda: with_header(__metadata__=[]), "metadata are not strings"),
    "metadata of numbers": (lambda: with_header(__metadata__={"mlpconv": 1}), "metadata are not strings"),
    "no metadata": (
        lambda: build({k: v for k, v in HEADER.items() if k != "__metadata__"}),
        "not a model file of mlpconv",
    ),
    "of another program": (lambda: with_header(__metadata__={"format": "pt"}), "not a model file of mlpconv"),
    "shape 2^32 x 2^32": (lambda: one_tensor(shape=[1 << 32, 1 << 32]), "more or fewer bytes"),
    "shape that overflows to fit": (lambda: one_tensor(shape=[1 << 62, 4, 2]), "more or fewer bytes"),
    "negative shape": (lambda: one_tensor(shape=[-2]), "non-negative integers"),
    "twice negative": (lambda: one_tensor(shape=[-1, -2]), "non-negative integers"),
    "fractional shape": (lambda: one_tensor(shape=[2.0]), "2.0 is not accepted"),
    "true as a size": (lambda: one_tensor(shape=[True, 2]), "non-negative integers"),
    "shape a text": (lambda: one_tensor(shape="2"), "non-negative integers"),
    "20 dimensions": (lambda: one_tensor(shape=[1] * 20 + [2]), "non-negative integers"),
    "three offsets": (lambda: one_tensor(data_offsets=[0, 4, 8]), "non-negative integers"),
    "negative offset": (lambda: one_tensor(data_offsets=[-8, 0]), "non-negative integers"),
    "backwards": (lambda: one_tensor(data_offsets=[8, 0]), "more or fewer bytes"),
    "beyond the end": (lambda: one_tensor(data_offsets=[1 << 40, (1 << 40) + 8]), "leaves a gap"),
    "unknown dtype": (lambda: one_tensor(dtype="F4"), "has the dtype 'F4'; accepted"),
    "dtype a list": (lambda: one_tensor(dtype=["F32"]), "has the dtype"),
    "an entry too many": (lambda: one_tensor(evil=1), "not dtype, shape and offsets"),
    "an entry too few": (lambda: build({"x": {"dtype": "F32"}}, b""), "not dtype, shape and offsets"),
    "overlap": (
        lambda: build(
            {k: {"dtype": "U8", "shape": [6], "data_offsets": [b, b + 6]} for k, b in (("x", 0), ("y", 2))}, b"\0" * 8
        ),
        "'y' overlaps another",
    ),
    "the same place twice": (
        lambda: build({k: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for k in "xy"}, b"\0" * 8),
        "overlaps another",
    ),
    "hole": (
        lambda: build(
            {k: {"dtype": "U8", "shape": [2], "data_offsets": [b, b + 2]} for k, b in (("x", 0), ("y", 6))}, b"\0" * 8
        ),
        "'y' leaves a gap",
    ),
    "bytes behind": (lambda: GOOD + b"#!/bin/sh\n", "bytes of tensors"),
    "another shape": (lambda: with_entry(shape=[*HEADER[FIRST]["shape"][::-1], 1]), "in shape .*, its network needs"),
    "another dtype": (lambda: with_tensors(lambda t: t.update({FIRST: t[FIRST].double()})), "F64, its network needs"),
    "whole numbers": (lambda: with_tensors(lambda t: t.update({FIRST: t[FIRST].int()})), "I32, its network needs"),
    "a tensor lacks": (lambda: with_tensors(lambda t: t.pop(FIRST)), f"lacks the tensor '{re.escape(FIRST)}'"),
    "a tensor too many": (
        lambda: with_tensors(lambda t: t.update(evil=torch.ones(3))),
        "unexpected, the tensor 'evil'",
    ),
    "NaN weight": (
        lambda: with_tensors(lambda t: t[FIRST].view(-1)[1:2].fill_(float("nan"))),
        "NaN or infinity in the",
    ),
    "infinite weight": (lambda: with_tensors(lambda t: t[FIRST].view(-1)[1:2].fill_(float("inf"))), "NaN or infinity"),
    "NaN mean": (
        lambda: with_tensors(lambda t: t["preprocessing.steps.0.mean"].fill_(float("nan"))),
        "NaN or infinity",
    ),
    "description not JSON": (lambda: sealed("{" + "0" * 64), "not valid JSON"),
    "description a list": (lambda: sealed("[]" + " " + "0" * 64), "not valid JSON"),
    "deep description": (lambda: sealed(deep_document(40)), "nested more than 32"),
    "very deep description": (lambda: sealed(deep_document(100_000)), "nested too deeply|more values"),
    "no format": (lambda: with_document(format=...), "format is missing"),
    "version a text": (lambda: with_document(version="1"), "format is missing"),
    "a newer version": (lambda: with_document(version=4), "reads up to 3: install a newer"),
    "a part lacks": (lambda: with_document(classes=...), "missing or unexpected"),
    "a part too many": (lambda: with_document(code="import os"), "missing or unexpected"),
    "short digest": (
        lambda: build(HEADER | {"__metadata__": {"mlpconv": json.dumps(DOCUMENT | {"sha256": ""})}}),
        "digest",
    ),
    "wide digest": (
        lambda: build(HEADER | {"__metadata__": {"mlpconv": json.dumps(DOCUMENT | {"sha256": "é" * 64})}}),
        "SHA-256 does not match",
    ),
    "classes too few": (lambda: with_document(classes=["a", "b"]), "2 class names for 3 classes"),
    "classes of numbers": (lambda: with_document(classes=[1, 2, 3]), "cannot be built: .*not a string"),
    "classes of lists": (lambda: with_document(classes=[["a"], ["b"], ["c"]]), "cannot be built"),
    "classes alike": (lambda: with_document(classes=["a", "a", "b"]), "unique names"),
    "huge images": (lambda: with_document(input_size=[1, 10**6, 10**6]), "each from 1 to 4096"),
    "tiny images": (lambda: with_document(input_size=[1, 1, 1]), "too small"),
    "unknown family": (lambda: with_document(**model_config(family="evil")), "cannot be built"),
    "no family": (lambda: with_document(model={}), "cannot be built"),
    "unknown key": (lambda: with_document(**model_config(__class__="os.system")), "cannot be built"),
    "10^9 channels": (lambda: with_document(**model_config(blocks=[BLOCK | {"channels": [10**9]}])), "cannot be built"),
    "10^5 blocks": (lambda: with_document(**model_config(blocks=[BLOCK] * 3000)), "far more layers"),
    "64 wide blocks": (
        lambda: with_document(**model_config(blocks=[BLOCK | {"channels": [16384] * 3}] * 64)),
        "cannot be built",
    ),
    "64 plain blocks": (
        lambda: with_document(**model_config(blocks=[BLOCK | {"channels": [3] * 16, "pool": "none"}] * 64)),
        "far more layers",
    ),
    "64 blocks of large kernels": (
        lambda: with_document(
            **model_config(
                blocks=[BLOCK | {"channels": [3], "pool": "none", "kernel": 64, "padding": 0}] * 64, size=[4096, 4096]
            )
        ),
        "too small|cannot",
    ),
    "a block of text": (lambda: with_document(**model_config(blocks="evil")), "cannot be built"),
    "activation of code": (lambda: with_document(**model_config(activation="__import__('os')")), "cannot be built"),
    "unknown step": (
        lambda: with_document(preprocessing={"steps": ["evil"], "channels": 1, "size": [7, 11]}),
        "cannot be",
    ),
    "huge whitening": (
        lambda: with_document(preprocessing={"steps": ["zca"], "channels": 1, "size": [4096, 4096]}),
        "cannot be built",
    ),
    "whitening unfilled": (
        lambda: with_document(preprocessing={"steps": ["zca"], "channels": 1, "size": [7, 11]}),
        "lacks",
    ),
    "preprocessing of colour": (
        lambda: with_document(preprocessing={"steps": ["scale"], "channels": 3, "size": [7, 11]}),
        "preprocessing is for images",
    ),
    "an unknown fit": (
        lambda: with_document(preprocessing={"steps": ["scale"], "channels": 1, "size": [7, 11], "fit": ["crop"]}),
        "cannot be built",
    ),
    "an unknown depth": (
        lambda: with_document(preprocessing={"steps": ["scale"], "channels": 1, "size": [7, 11], "bits": 1 << 70}),
        "cannot be built",
    ),
    "no preprocessing": (lambda: with_document(preprocessing={}), "cannot be built"),
}


def refused(path: Path) -> str:
    """Return the message with which a file is refused; it names the file and has no control characters."""
    with pytest.raises(ModelFileError) as caught:
        inference.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 700
    assert caught.value.exit_code == 1
    return sentence


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(GOOD)
    (tmp_path / "n").write_bytes(with_document(info={"changed": True}))
    assert inference.load(tmp_path / "m").classes == inference.load(tmp_path / "n").classes == ("a", "b", "c")


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_at_once(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(make())
    sentence = refused(path)
    assert re.search(message, sentence), sentence
    within(lambda: refused(path), CALLS, MEBIBYTES)


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    made = [make() for make, _ in HOSTILE.values()]
    large = [content for content in made if len(content) > 2 * len(GOOD)]
    for number, content in enumerate(large):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    (tmp_path / "good").write_bytes(GOOD)
    code = f"""
import resource, sys
from pathlib import Path
from mlpconv import inference, modelfile
from mlpconv.errors import ModelFileError
inference.load({str(tmp_path / "good")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for path in sorted(Path({str(tmp_path)!r}).glob("*.safetensors")):
    try:
        inference.load(path)
    except ModelFileError:
        refused += 1
print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    count, grown = out.split()
    assert int(count) == len(large) > 10
    assert float(grown) < MEBIBYTES


def test_a_file_beyond_the_limit_is_not_opened_further(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse: it takes no disk
    assert "at most 2,147,483,648 are accepted" in refused(path)


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.canary),))


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return out.getvalue()


def array_of_objects(bomb: Bomb) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([bomb], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth", "model.pkl", "model.ckpt", "model"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "torch", "npy"])
def test_pickles_never_run(tmp_path: Path, name: str, protocol: int | str) -> None:
    canary = tmp_path / "canary"
    bomb, path = Bomb(canary), tmp_path / name
    if protocol == "torch":
        path.write_bytes(zipped(pickle.dumps(bomb)))
    elif protocol == "npy":
        path.write_bytes(array_of_objects(bomb))
    else:
        path.write_bytes(pickle.dumps(bomb, protocol))
    assert "pickle is never read" in refused(path)
    assert not canary.exists()


def test_the_bomb_is_a_bomb(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "dangling link", "loop of links", "no permission"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "model.safetensors").mkdir(parents=True)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop of links":
        path.symlink_to(path)
    elif os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    else:
        path.touch(mode=0)
    within(
        lambda: re.search("not a regular file|cannot be read", refused(path)) or pytest.fail("another message"), 5_000
    )


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Half of the flips fall in the header, where a third of the format's meaning lies."""
    path, dice = tmp_path / "m", random.Random(5)
    places = [dice.randrange(8 + LENGTH) for _ in range(FLIPS // 2)]
    places += [dice.randrange(8 + LENGTH, len(GOOD)) for _ in range(FLIPS - len(places))]
    for place in places:
        damaged = bytearray(GOOD)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_every_flipped_bit_of_the_length_and_the_digest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    start = GOOD.index(DOCUMENT["sha256"].encode())
    for bit in [*range(64), *range(8 * start, 8 * start + 8 * 64, 7)]:
        damaged = bytearray(GOOD)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)


def test_truncation_anywhere_is_found(tmp_path: Path) -> None:
    ends = [0, 1, 7, 8, 9, 10, *(8 + LENGTH + d for d in (-1, 0, 1)), len(GOOD) // 2, len(GOOD) - 1]
    ends += [8 + LENGTH + offset for n, e in HEADER.items() if n != "__metadata__" for offset in e["data_offsets"]]
    path = tmp_path / "m"
    for end in sorted(set(ends) - {len(GOOD)}):
        path.write_bytes(GOOD[:end])
        assert re.search("cut off|empty", refused(path)), end


@settings(max_examples=150)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_give_another_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, framed: bool) -> None:
    path = tmp_path_factory.mktemp("bytes") / "m"
    path.write_bytes(build(b"{" + content, b"") if framed else content)
    refused(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(
    st.sampled_from(["model", "preprocessing", "classes", "input_size", "version", "sha256"]), JSON_VALUES, st.data()
)
def test_no_description_gives_another_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, data: st.DataObject
) -> None:
    """Any value in any place of the description: a whole part, or one setting of the network."""
    changes = {key: value}
    if key == "model" and data.draw(st.booleans()):
        changes = model_config(**{data.draw(st.sampled_from(sorted(DOCUMENT["model"]))): value})
    if (DOCUMENT | changes) == DOCUMENT:
        return
    path = tmp_path_factory.mktemp("json") / "m"
    path.write_bytes(build(HEADER | {"__metadata__": {"mlpconv": json.dumps(DOCUMENT | changes)}}))
    refused(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.parametrize("kind", ["cut off", "device", "good"])
def test_no_file_stays_open(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(GOOD[:-1] if kind == "cut off" else GOOD)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        if kind == "good":
            inference.load(path)
        else:
            refused(path)
    assert len(os.listdir("/proc/self/fd")) == before
