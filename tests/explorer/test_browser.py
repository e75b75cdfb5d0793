"""The page in Chromium: every number that it shows or computes is torch's, and the playground's code runs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.page import serving
from support.small_networks import shaken

import mlpconv
from mlpconv.explorer import Subject, export_site, make_app
from mlpconv.explorer.site import _site
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

pytestmark = pytest.mark.browser

TOLERANCE = 1e-6
READY = "#main .inspector h3:not(:empty)"


def script(name: str) -> str:
    """A function that runs in the page."""
    return (Path(__file__).parent / "scripts" / f"{name}.js").read_text()


POINT_AT_RANDOM = script("point_at_random")


def until(page: Any, condition: str) -> None:
    """Wait for a condition; the page's policy forbids playwright's own waiting, which uses eval."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    pytest.fail(f"the page never came to {condition}")


def check_hovers(seen: list[Any], subject: Subject, image: int = 0) -> None:
    """Compare each heading and value with torch's, in float64; the network is run by its own forward."""
    values: dict[str, torch.Tensor] = {}
    hooks = []
    model = subject.program.graph
    for step in subject.program.steps[1:]:
        with contextlib.suppress(AttributeError):
            module = model.get_submodule(step["name"])
            hooks.append(
                module.register_forward_hook(lambda _, __, out, name=step["name"]: values.__setitem__(name, out[0]))
            )
    with torch.inference_mode():
        logits = model(subject.input(image))[0]
    for hook in hooks:
        hook.remove()
    assert len({heading for heading, *_ in seen}) > len(seen) // 3
    for heading, last, results in seen:
        name, channel, row, column = re.fullmatch(
            r"(\S+): .*?channel (\d+)\)?(?:, row (\d+), column (\d+))?", heading).groups()  # fmt: skip
        at = (int(channel) - 1, int(row or 1) - 1, int(column or 1) - 1)
        if name == "mean":
            assert last == pytest.approx(float(logits[at[0]]), abs=TOLERANCE)
        else:
            assert results[0] == pytest.approx(float(values[name][at]), abs=TOLERANCE), heading
            assert last in (pytest.approx(results[0]), pytest.approx(max(results[0], 0.0)))


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_value_under_the_pointer_is_torchs(page: Any, address: str, digits: Subject, count: int) -> None:
    page.goto(address)
    page.wait_for_selector(READY)
    check_hovers(page.evaluate(POINT_AT_RANDOM, [7, count]), digits)


def test_a_site_from_the_file_system_shows_torchs_values_and_its_accuracy(
    page: Any, digits: Subject, tmp_path: Path
) -> None:
    export_site(digits, tmp_path)
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_selector(READY)
    check_hovers(page.evaluate(POINT_AT_RANDOM, [11, 40]), digits)
    page.locator(".layers .tiles").first.click(position={"x": 20, "y": 20})
    until(page, "location.hash.includes('cell=1.0.')")
    page.get_by_role("button", name="Accuracy on 359 held-out images").click()
    page.wait_for_selector("text=95 % interval")
    shown = page.locator("[aria-label='Change the network'] [role=status]").inner_text()
    expected = digits.accuracy("")
    assert f"{expected['accuracy']:.2%}".replace("%", " %") in shown
    assert f"{expected['low']:.2%}".replace("%", " %") in shown
    assert f"{expected['high']:.2%}".replace("%", " %") in shown


NETWORKS = {
    "nin_tiny": {"norm": "batch", "activation": "leaky_relu"},
    "nin_cifar10": {"dropout": 0.0},
    "nin_imagenet": {"num_classes": 7},
    "squeezenet": {"width": 0.25, "num_classes": 11},
    "efficientnet_lite0": {"width": 0.25, "num_classes": 5},
}

RUN_SITE = script("run_site")


def subject_of(name: str) -> Subject:
    torch.manual_seed(3)
    model = shaken(create_model(name, **NETWORKS[name]))
    channels, side = model.input_size[0], min(model.input_size[1], 67)
    chain = Preprocessing.create(["standardize"], channels, (side, side))
    pixels = np.random.default_rng(2).integers(0, 255, (4, channels, side, side), dtype=np.uint8)
    chain.fit(torch.from_numpy(pixels))
    classes = [f"class {k}" for k in range(model.num_classes)]
    subject = Subject(mlpconv.Classifier(model, chain, classes, (channels, side, side)), name)
    subject.add(pixels[:1], "noise")
    return subject


@pytest.mark.parametrize("name", ["nin_tiny", "squeezenet", "efficientnet_lite0", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("nin_cifar10", "nin_imagenet"))])  # fmt: skip
def test_the_browser_computes_what_torch_computes(page: Any, address: str, name: str) -> None:
    subject = subject_of(name)
    page.goto(address)
    conv = [step for step in subject.program.steps if step["op"] == "conv"][1]["id"]
    for edits in ("", f"s{conv}.1:0.5,r{conv}.2,w{conv}.0.0:1.25"):
        outputs = page.evaluate(RUN_SITE, [json.dumps(_site(subject)), edits])
        expected = subject.outputs(0, edits, range(len(outputs)))
        for step, mine, theirs in zip(subject.program.steps, outputs, expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            values = np.frombuffer(base64.b64decode(mine))
            np.testing.assert_allclose(
                values, theirs.numpy().ravel(), rtol=0, atol=TOLERANCE * scale, err_msg=step["name"]
            )


PRESET_RESULTS = script("preset_results")


def run_code(code: str) -> torch.Tensor:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "copied", "exec"), names)
    return names["output"].detach()


def test_the_code_of_every_preset_runs_and_gives_the_tensor_on_the_page(page: Any, address: str) -> None:
    page.goto(address)
    results = page.evaluate(PRESET_RESULTS)
    assert len(results) > 20
    for name, code, shape, values, error in results:
        assert error == "", name
        output = run_code(code)
        assert output.numel() == np.prod(shape), name
        np.testing.assert_allclose(
            output.reshape(-1)[: len(values)].numpy(), values, rtol=0, atol=TOLERANCE, err_msg=name
        )


CHAIN = script("run_chain")


def test_random_chains_agree_with_torch_in_every_setting(page: Any, address: str) -> None:
    page.goto(address)
    rng, errors = random.Random(5), 0
    for _ in range(40):
        groups = rng.choice([1, 1, 2, 3])
        shape = [groups * rng.choice([1, 2, 3]), rng.choice([5, 7, 11]), rng.choice([5, 7, 13])]
        settings = f"s{rng.choice([1, 2, 3])}.p{rng.choice([0, 1, 2])}.d{rng.choice([1, 1, 2])}.g{groups}"
        first = f"c{rng.choice([1, 2, 3, 5])}.{groups * rng.choice([1, 2])}.{settings}"
        after, last = rng.sample(["r", "m2.1", "a2.2", "m3.2", "c1.3", "g"], 2), [[], ["f", "l4"], ["f", "l3", "r"]]
        words = [first, *after, *rng.choice(last)]
        text, error, out, values, code, costs = page.evaluate(CHAIN, [shape, "mixed", "-".join(words)])
        if error:
            errors += 1
            continue
        output = run_code(code)
        assert list(output.reshape(out).shape) == out
        np.testing.assert_allclose(output.numpy().ravel(), values, rtol=0, atol=TOLERANCE, err_msg=text)
        assert len(costs) == len(words) + 1
    assert errors < 30


def test_a_chain_that_does_not_fit_says_which_layer(page: Any, address: str) -> None:
    page.goto(address)
    for text, sentence in {"c3.4.g3": "Layer 1: 3 groups do not divide 4", "c1.2-c9.2": "Layer 2: a kernel of 9",
                           "f-c1.2": "Layer 2: after Flatten", "l3": "Layer 1: a fully connected"}.items():  # fmt: skip
        page.goto(f"{address}/#/arithmetic?in=5x5x4&a={text}")
        page.wait_for_selector(".stage .trouble")
        assert page.locator(".stage .trouble").inner_text().startswith(sentence)


def test_the_state_is_the_address(page: Any, address: str) -> None:
    page.goto(
        f"{address}/#/arithmetic?preset=cat-dog&in=6x6x2&data=detectors&a=c1.1-r&w=a0.0:1,a0.1:-1,a0.b0:0&cell=a1.0.1.2"
    )
    heading = page.locator(".inspector h3")
    assert "row 2, column 3" in heading.inner_text()
    page.get_by_label("Filters").fill("2")
    page.get_by_label("Filters").press("Enter")
    until(page, "location.hash.includes('a=c1.2-r')")
    page.go_back()
    until(page, "location.hash.includes('a=c1.1-r')")
    assert page.get_by_label("Filters").input_value() == "1"
    page.reload()
    page.wait_for_selector(READY)
    assert "row 2, column 3" in page.locator(".inspector h3").inner_text()


def test_an_edit_changes_maps_probabilities_and_costs_and_can_be_undone(
    page: Any, address: str, digits: Subject
) -> None:
    step = next(step["id"] for step in digits.program.steps if step["name"] == "blocks.2.convs.1")
    page.goto(address)
    page.wait_for_selector(READY)
    before = page.locator(".totals").inner_text(), page.locator(".probabilities").inner_text()
    page.goto(f"{address}/#/network?edits=i{step}")
    until(page, "document.querySelector('.done li')?.textContent.includes('identity')")
    (logits,) = digits.outputs(0, f"i{step}", [len(digits.program.steps) - 1])
    best = int(logits.argmax())
    shown = page.locator(".probabilities").inner_text().split("\n")
    assert shown[0] == digits.classifier.classes[best]
    assert shown[1] == f"{float(F.softmax(logits.reshape(-1), 0)[best]):.1%}".replace("%", " %")
    lost = 64 * 64 + 64
    parameters = [
        int(text.split(" parameters")[0].replace(",", "")) for text in (before[0], page.locator(".totals").inner_text())
    ]
    assert parameters[0] - parameters[1] == lost
    page.get_by_role("button", name="Undo: replaced by the identity").click()
    until(page, "!document.querySelector('.done li')")
    assert (page.locator(".totals").inner_text(), page.locator(".probabilities").inner_text()) == before


def test_the_code_of_edits_runs_and_gives_the_logits_on_the_page(page: Any, address: str, digits: Subject) -> None:
    pointwise = next(step["id"] for step in digits.program.steps if step["name"] == "blocks.1.convs.1")
    edits = f"s{pointwise}.3:0,w1.2.4:0.75,r{pointwise}.5,i{pointwise + 2 - 2}"
    page.goto(f"{address}/#/network?edits={edits}")
    page.wait_for_selector(READY)
    names: dict[str, Any] = {}
    exec(compile(page.locator(".network pre").inner_text(), "copied", "exec"), names)
    (expected,) = digits.outputs(0, edits, [len(digits.program.steps) - 1])
    with torch.no_grad():
        logits = names["model"](digits.input(0)).reshape(-1)
    torch.testing.assert_close(logits, expected.reshape(-1), rtol=0, atol=TOLERANCE)


def test_everything_can_be_reached_with_the_keyboard(page: Any, address: str) -> None:
    page.goto(f"{address}/#/arithmetic?in=5x5x2&a=c1.2")
    picture = page.locator(".flow .tiles").nth(1)
    picture.focus()
    for key in ("ArrowRight", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
    assert "channel 2, row 4, column 4" in page.locator(".inspector h3").inner_text()
    page.keyboard.press("Enter")
    until(page, "location.hash.includes('cell=a1.1.3.3')")
    page.keyboard.press("ArrowUp")  # the picture still has the focus
    assert "channel 2, row 3, column 4" in page.locator(".inspector h3").inner_text()
    page.get_by_label("Filters").fill("3")
    page.keyboard.press("Tab")  # the view is built anew, and the next field has the focus
    until(page, "location.hash.includes('a=c1.3')")
    until(page, "document.activeElement?.labels?.[0]?.textContent === 'Stride'")


def test_hostile_names_are_text(page: Any) -> None:
    loaded = mlpconv.load("digits")
    classes = ("<img src=x onerror=alert(1)>", "\u202eevil", *loaded.classes[2:])
    subject = Subject(mlpconv.Classifier(loaded.model, loaded.preprocessing, classes, loaded.input_size), "digits")
    subject.add(np.zeros((8, 8), np.uint8), "<script>alert(2)</script>")
    with serving(make_app(subject)) as url:
        page.goto(url)
        page.wait_for_selector(READY)
        assert "<img src=x onerror=alert(1)>" in page.locator(".probabilities, .classes select").all_inner_texts()[1]
        assert page.locator("main img, main script").count() == 0
        assert "<script>alert(2)</script>" in page.locator(".images").inner_text()


@pytest.mark.parametrize("width", [1440, 768, 360])
@pytest.mark.parametrize("view", ["network", "arithmetic", "why?step=7"])
def test_no_view_is_wider_than_the_screen_and_every_control_has_a_name(
    page: Any, address: str, width: int, view: str
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{address}/#/{view}")
    page.wait_for_selector(READY)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(script("nameless")) == []
    assert page.evaluate(script("repeated_ids")) == []


def test_two_networks_are_compared_on_the_same_image(page: Any, digits: Subject, tmp_path: Path) -> None:
    other = Subject(mlpconv.load("nin_mnist"), "nin_mnist")
    for name, image in zip(digits.names, digits.images, strict=True):
        other.add(image, name)
    export_site(digits, tmp_path, other=other)
    page.goto((tmp_path / "index.html").as_uri() + "#/compare?image=1")
    page.wait_for_selector(".compare .layers canvas")
    shown = page.locator(".compare .top").all_inner_texts()
    for subject, text in zip((digits, other), shown, strict=True):
        chances = F.softmax(subject.outputs(1, "", [len(subject.program.steps) - 1])[0].reshape(-1), 0)
        best = int(chances.argmax())
        assert text.startswith(f"{subject.classifier.classes[best]}: {float(chances[best]):.1%}".replace("%", " %"))


def test_an_image_can_be_dropped_on_the_page(page: Any, tmp_path: Path) -> None:
    subject = Subject(mlpconv.load("digits"), "digits")
    subject.add(np.zeros((8, 8), np.uint8), "nothing")
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (31, 23), dtype=np.uint8)).save(tmp_path / "noise.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with serving(make_app(subject)) as url:
        page.goto(url)
        page.wait_for_selector(READY)
        page.locator("#add-image").set_input_files(tmp_path / "noise.png")
        page.wait_for_selector(".images button[aria-pressed=true] >> text=noise.png")
        assert torch.equal(subject.pixels[1], subject.classifier.pixels(str(tmp_path / "noise.png"))[0])
        page.locator("#add-image").set_input_files(tmp_path / "broken.png")
        page.wait_for_selector(".network .trouble:not([hidden])")
        assert "broken.png" in page.locator(".network .trouble").inner_text()
        page.troubles[:] = [text for text in page.troubles if "422" not in text]  # the refusal of broken.png


def test_a_network_without_class_maps_and_with_many_classes_is_explained(page: Any) -> None:
    torch.manual_seed(1)
    model = create_model("nin_tiny", num_classes=900, head="fc")
    chain = Preprocessing.create(["scale"], 1, (8, 8))
    subject = Subject(mlpconv.Classifier(model, chain, [f"class {k}" for k in range(900)], (1, 8, 8)), "many")
    subject.add(np.eye(8, dtype=np.uint8), "line")
    with serving(make_app(subject)) as url:
        page.goto(url)
        page.wait_for_selector(READY)
        assert "no class maps" in page.locator(".classes").inner_text()
        page.get_by_label("Class", exact=True).select_option("class 899")
        until(page, "location.hash.includes('class=899')")
        assert "class 899" in page.locator(".probabilities").inner_text()
        last = len(subject.program.steps) - 1  # 3.2 million weights: only one filter of them is fetched
        page.goto(f"{url}/#/network?cell={page.locator('.layers > li').count()}.7.0.0")
        until(page, "document.querySelector('.inspector h3').textContent.includes('channel 8')")
        shown = page.locator(".inspector .result .value").get_attribute("title").replace("\u2212", "-")
        assert float(shown) == pytest.approx(float(subject.outputs(0, "", [last])[0][7]), abs=TOLERANCE)
