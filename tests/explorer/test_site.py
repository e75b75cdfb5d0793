"""The exported folder, and the script that its modules are joined to."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mlpconv
from mlpconv.errors import RunFolderError, SurgeryError, UsageError
from mlpconv.explorer import Subject, export_site
from mlpconv.explorer.app import static_files
from mlpconv.explorer.bundle import EXPORT, IMPORT, bundle


def test_a_site_has_all_files_and_says_its_size(digits: Subject, tmp_path: Path) -> None:
    size = export_site(digits, tmp_path / "site")
    files = {file.name: file.stat().st_size for file in (tmp_path / "site").iterdir()}
    assert set(files) == {"index.html", "explorer.js", "network.js", "style.css"}
    assert sum(files.values()) == size
    page = (tmp_path / "site" / "index.html").read_text()
    assert "static/" not in page
    assert "module" not in page
    assert "default-src 'none'" in page


def test_the_weights_and_images_of_a_site_are_exact(digits: Subject, tmp_path: Path) -> None:
    export_site(digits, tmp_path)
    site = json.loads((tmp_path / "network.js").read_text().removeprefix("window.MLPCONV_SITE = ").removesuffix(";\n"))
    weights = np.frombuffer(base64.b64decode(site["weights"]), "<f4")
    step = site["model"]["steps"][1]
    np.testing.assert_array_equal(weights[slice(*step["stored"])], digits.weights(1, "").numpy())
    pixels = np.frombuffer(base64.b64decode(site["images"][2]["pixels"]), np.uint8)
    np.testing.assert_array_equal(pixels, digits.pixels[2].numpy().ravel())
    image = np.frombuffer(base64.b64decode(site["images"][2]["input"]), "<f4")
    np.testing.assert_array_equal(image, digits.input(2).numpy().ravel())
    assert site["heldOut"]["labels"] == digits.held_out.labels.tolist()


def test_the_playground_alone_is_a_site_too(tmp_path: Path) -> None:
    export_site(None, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"index.html", "explorer.js", "style.css"}


def test_a_folder_with_content_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="--force"):
        export_site(None, tmp_path)
    export_site(None, tmp_path, force=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(RunFolderError, match="is a file"):
        export_site(None, tmp_path / "precious.txt", force=True)


def test_a_site_that_is_too_large_is_not_written(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpconv.explorer.site.MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="at most"):
        export_site(digits, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_network_that_the_page_cannot_compute_is_refused(tmp_path: Path) -> None:
    subject = Subject(mlpconv.load("digits"), "digits")
    subject.program.steps[2] = subject.program.steps[2] | {"op": "other", "module": "sin() in the forward"}
    with pytest.raises(SurgeryError, match="sin"):
        export_site(subject, tmp_path)


def test_names_in_a_site_cannot_end_its_script(tmp_path: Path) -> None:
    loaded = mlpconv.load("digits")
    hostile = ("</script><img src=x>", *loaded.classes[1:])
    subject = Subject(mlpconv.Classifier(loaded.model, loaded.preprocessing, hostile, loaded.input_size), "digits")
    subject.add(np.zeros((8, 8), np.uint8), "<b>\u202egnp")
    export_site(subject, tmp_path)
    assert "</script><img" not in (tmp_path / "index.html").read_text()
    assert "\\\\u202e" in (tmp_path / "network.js").read_text()


def test_modules_are_joined_in_the_order_of_their_imports() -> None:
    script = bundle({
        "b.js": 'import {one} from "./a.js";\nexport const two = one + 1;\n',
        "c.js": 'import {two} from "./b.js";\nimport {one} from "./a.js";\nglobalThis.sum = one + two;\n',
        "a.js": "export const one = 1;\nexport async function f() {}\nexport class G {}\n",
        "unused.js": "nothing",
    }, "c.js")  # fmt: skip
    assert script.index("modules['a.js']") < script.index("modules['b.js']") < script.index("modules['c.js']")
    assert "unused" not in script
    assert "import" not in script
    assert "return {one, f, G};" in script


def test_modules_in_a_cycle_are_refused() -> None:
    with pytest.raises(UsageError, match="cycle"):
        bundle({"a.js": 'import {b} from "./b.js";', "b.js": 'import {a} from "./a.js";'}, "a.js")


def test_every_module_of_the_page_can_be_joined() -> None:
    scripts = {name: content.decode() for name, content in static_files().items() if name.endswith(".js")}
    joined = bundle(scripts, "boot-site.js")
    for name in set(scripts) - {"boot.js"}:
        assert f"modules['{name}']" in joined
    assert "\nexport " not in joined
    assert "\nimport " not in joined


def test_batch_norm_travels_with_its_statistics() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.running_mean += 2
    from mlpconv.explorer.subject import norm_vector

    assert norm_vector(norm).tolist() == [1] * 3 + [0] * 3 + [2] * 3 + [1] * 3


def test_every_import_of_a_module_exists_and_is_used_and_every_export_is_imported() -> None:
    scripts = {name: content.decode() for name, content in static_files().items() if name.endswith(".js")}
    exports = {name: set(EXPORT.findall(text)) for name, text in scripts.items()}
    unused = {(name, export) for name in exports for export in exports[name]}
    for name, text in scripts.items():
        body = IMPORT.sub("", text)
        for words, source in IMPORT.findall(text):
            for word in filter(None, (word.strip() for word in words.split(","))):
                assert word in exports[source], (name, word)
                assert re.search(rf"\b{word}\b", body), (name, word)
                unused.discard((source, word))
    assert unused == set()


def test_no_module_of_the_page_is_long() -> None:
    files = static_files().items()
    assert {name for name, text in files if name.endswith(".js") and text.count(b"\n") > 300} == set()
