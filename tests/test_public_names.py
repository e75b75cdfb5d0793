"""The names that users and tests from outside rely on, and that importing the package costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import mlpconv

SOURCE = Path(inspect.getfile(mlpconv))
PROMISED = """
__version__ analysis Classifier Dataset Evaluation GlobalAveragePool MLPConv Maxout MlpconvError Prediction Predictions
Preprocessing Recipe Run Split category_maps create_model evaluate fit list_models load open_data save surgery
write_report
""".split()
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "cyclopts", "rich", "safetensors"}


def test_the_public_names_are_exactly_the_promised_ones() -> None:
    assert sorted(mlpconv.__all__) == sorted(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_each_name_is_there_and_explains_itself(name: str) -> None:
    value = getattr(mlpconv, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_dir_lists_names_that_have_not_been_used() -> None:
    assert set(PROMISED) <= set(dir(mlpconv))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modl'"):
        mlpconv.create_modl  # noqa: B018  (the access is the test)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(SOURCE.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        (alias.asname, str(node.module).removeprefix("mlpconv").removeprefix("."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {*mlpconv._MODULE_OF.items(), ("analysis", ""), ("surgery", "")}


def test_importing_brings_nothing_heavy() -> None:
    code = "import sys; import mlpconv; print(' '.join(sys.modules))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(names)
    assert [name for name in names if name.startswith("mlpconv")] == ["mlpconv"]


def test_a_star_import_brings_every_name() -> None:
    code = "from mlpconv import *; print(list_models.__name__, Classifier.__name__, analysis.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["list_models", "Classifier", "mlpconv.analysis"]
