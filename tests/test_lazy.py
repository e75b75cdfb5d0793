"""Public names are imported on first use, and other names are errors as of any module."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlpconv.data
import mlpconv.deploy
import mlpconv.explorer
from mlpconv.lazy import lazy_names


def test_a_name_comes_from_its_module() -> None:
    find = lazy_names("mlpconv", {"cut": "text", "MlpconvError": "errors"})
    assert find("MlpconvError") is mlpconv.errors.MlpconvError
    with pytest.raises(AttributeError, match="module 'mlpconv' has no attribute 'cat'"):
        find("cat")


@pytest.mark.parametrize("package", [mlpconv.data, mlpconv.deploy, mlpconv.explorer])
def test_every_public_name_of_a_lazy_package_is_found(package: object) -> None:
    assert set(package._MODULE_OF) == set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError):
        package.nothing_of_that_name  # noqa: B018


def test_importing_a_package_does_not_import_its_names() -> None:
    code = "import sys, mlpconv.data; print([name for name in sys.modules if name.startswith('mlpconv.data.')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
