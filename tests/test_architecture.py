"""The house rules, read from the source with `ast`: import order, sizes, bans, names, tests that can fail.

`support/house_rules.py` has the rules on one file; the snippets at the end show what each of them catches.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from support import house_rules as rules
from support.house_rules import Rule
from support.imports import PACKAGE, import_graph, mermaid, top_name

TOP = Path(__file__).resolve().parents[1]

# Inside surgery, a level imports itself and the levels before it; no operation imports another.
SURGERY_LEVELS = (
    {"tracing"}, {"proof"}, {"folding"}, {"heads"}, {"report"}, {"lowrank"}, {"insertion"},
    {"convolutionalize", "pool_head", "fold", "deepen", "factorize"},
)  # fmt: skip
NOT_CODE = {"py.typed", "recipes", "weights", "__pycache__"}
# Names that several modules or classes share. Modules of plots/ and cli/ are not listed: they are named after others.
SHARED_MODULES = {"folding", "report", "rules", "steps"}
SHARED_CLASSES = {"Head", "Header"}

RULES: tuple[Rule, ...] = (rules.import_order, rules.sizes, rules.bans, rules.import_effects, rules.docstrings)
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((TOP / "tests").rglob("test_*.py"))
SCRIPTS = sorted([*(TOP / "benchmarks").rglob("*.py"), *(TOP / "examples").rglob("*.py")])


def violations(path: Path, checks: tuple[Rule, ...], package: str) -> list[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    return [f"{rule.__name__}: {message}" for rule in checks for message in rule(tree, source, package)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_keeps_every_rule(path: Path) -> None:
    problems = violations(path, RULES, top_name(path))
    assert not problems, "\n".join(problems)


RUNNING = [path for path in (PACKAGE / "deploy").glob("*.py") if path.stem not in (rules.EXPORTING | {"__init__"})]


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.name)
def test_what_runs_exported_models_needs_no_torch(path: Path) -> None:
    problems = violations(path, (rules.without_torch,), "deploy")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(TOP)))
def test_scripts_are_short_and_documented(path: Path) -> None:
    problems = violations(path, (rules.sizes, rules.docstrings), "script")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(TOP / "tests")))
def test_every_test_can_fail(path: Path) -> None:
    problems = violations(path, (rules.vacuous_tests,), "tests")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(TOP / "tests")))
def test_no_test_asserts_on_seconds(path: Path) -> None:
    problems = violations(path, (rules.timed_assertions,), "tests")
    assert not problems, "\n".join(problems)


def test_every_package_has_a_place_in_the_order_and_tests() -> None:
    packages = {top_name(path) for path in PACKAGE.iterdir()} - NOT_CODE - rules.ENTRY_POINTS
    assert packages == set(rules.MAY_IMPORT)
    tested = {path.name.removesuffix(".py").removeprefix("test_") for path in (TOP / "tests").iterdir()}
    assert set(rules.MAY_IMPORT) <= tested


def test_submodules_of_surgery_import_only_lower_levels() -> None:
    graph = import_graph("surgery")
    assert set(graph) == set().union(*SURGERY_LEVELS)
    for position, level in enumerate(SURGERY_LEVELS[:-1]):
        allowed = set().union(*SURGERY_LEVELS[: position + 1])
        assert {name: graph[name] - allowed for name in level if graph[name] - allowed} == {}
    operations = SURGERY_LEVELS[-1]
    assert {name: graph[name] & operations for name in operations if graph[name] & operations} == {}


def test_only_the_downloader_and_the_server_import_a_network_library() -> None:
    network = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "asyncio", "requests", "httpx"}
    importers = {}
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        if used := {name.split(".")[0] for name in names} & network:
            importers[str(path.relative_to(PACKAGE))] = used
        if "mlpconv.data.download" in names:
            importers[str(path.relative_to(PACKAGE))] = {"download"}
    expected = {
        "data/download.py": {"http", "urllib"},
        "cli/data.py": {"download"},
        "deploy/connection.py": {"asyncio", "http"},
        "deploy/draining.py": {"asyncio", "socket"},
        "deploy/guard.py": {"asyncio", "http"},
        "deploy/serving.py": {"asyncio", "socket"},
        "deploy/wire.py": {"asyncio", "socket"},
        "deploy/worker.py": {"socket"},
        "deploy/worker_pool.py": {"asyncio", "socket"},
    }
    assert importers == expected


def test_contributing_lists_the_packages_in_the_import_order() -> None:
    page = (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")
    order = page.partition("`text → ")[2].partition("`")[0].replace("→", " ").split()
    assert ["text", *order] == rules.ORDER


def test_the_picture_leaves_out_imports_that_follow_from_others() -> None:
    text = mermaid({"files": set(), "data": {"files"}, "fit": {"files", "data"}})
    assert text == "graph BT\n  files\n  data --> files\n  fit --> data"


def test_no_two_modules_share_a_name() -> None:
    files = defaultdict(list)
    for path in SOURCES:
        name, folder = (path.parent.name, path.parent.parent) if path.stem == "__init__" else (path.stem, path.parent)
        if folder.name not in ("cli", "plots"):
            files[name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SHARED_MODULES} == {}


def test_no_two_public_classes_share_a_name() -> None:
    files = defaultdict(list)
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in rules.public_names(tree) & {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            files[name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SHARED_CLASSES} == {}


NOW = "time.monotonic()"  # in snippets, so that a search for timed tests finds none
BAD = {
    "an import of a later package": (rules.import_order, "layers", "from mlpconv.models import registry"),
    "an import of a later package, inside a function": (
        rules.import_order,
        "data",
        "def f():\n    import mlpconv.training.loop",
    ),
    "an import of a later package, by name": (
        rules.import_order,
        "data",
        "import importlib\nimportlib.import_module('mlpconv.fitting')",
    ),
    "the package itself from inside": (rules.import_order, "modelfile", "from mlpconv import fit"),
    "a relative import": (rules.import_order, "models", "from . import nin"),
    "analysis imports a network": (rules.import_order, "analysis", "from mlpconv.models.registry import create_model"),
    "a server that imports torch": (rules.without_torch, "deploy", "def f():\n    import torch.nn"),
    "a server that imports torch, from": (rules.without_torch, "deploy", "from torch import nn"),
    "a server that imports a network": (rules.without_torch, "deploy", "from mlpconv.inference import load"),
    "a server that imports the export": (
        rules.without_torch,
        "deploy",
        "from mlpconv.deploy.exportable import Exportable",
    ),
    "a long file": (rules.sizes, "layers", "x = 1\n" * 301),
    "a long function": (rules.sizes, "layers", "def f():\n" + "    x = 1\n" * 60),
    "assert": (rules.bans, "layers", "assert True"),
    "print": (rules.bans, "layers", "def f():\n    print(1)"),
    "eval": (rules.bans, "layers", "eval('1')"),
    "exec": (rules.bans, "cli", "exec('1')"),
    "pickle": (rules.bans, "modelfile", "import pickle"),
    "pickle, from": (rules.bans, "modelfile", "def f():\n    from pickle import loads"),
    "torch.load": (rules.bans, "modelfile", "import torch\ntorch.load('x')"),
    "torch.load, renamed": (rules.bans, "modelfile", "from torch import load as read"),
    "torch.load of another module": (rules.bans, "modelfile", "import safetensors.torch\nsafetensors.torch.load(b'')"),
    "torch.load in a message": (rules.bans, "transfer", "x = 'read it with torch.load and'"),
    "numpy with pickle": (rules.bans, "data", "np.load('x', allow_pickle=True)"),
    "a shell": (rules.bans, "data", "run('ls', shell=True)"),
    "a shell, from a variable": (rules.bans, "data", "run('ls', shell=yes)"),
    "a star import": (rules.bans, "layers", "from math import *"),
    "unfinished code": (rules.bans, "layers", "x = 1  # " + "TODO later"),
    "an abstract method by exception": (rules.bans, "models", "def f():\n    raise " + "NotImplementedError"),
    "a flag at import": (rules.import_effects, "layers", "import torch\ntorch.backends.cudnn.benchmark = True"),
    "a flag at import, in an if": (rules.import_effects, "layers", "if True:\n    torch.set_num_threads(1)"),
    "a function without a docstring": (rules.docstrings, "layers", '"""File."""\ndef area(): ...'),
    "a public class without a docstring": (rules.docstrings, "layers", '"""File."""\n__all__ = ["A"]\nclass A: ...'),
    "a module without a docstring": (rules.docstrings, "layers", "x = 1"),
    "a test whose helper only computes": (
        rules.vacuous_tests,
        "tests",
        "def f():\n    return 1\ndef test_it():\n    f()",
    ),
    "a test without an assertion": (rules.vacuous_tests, "tests", "def test_it():\n    f()"),
    "seconds": (
        rules.timed_assertions,
        "tests",
        f"def test_it():\n    t = {NOW}\n    assert {NOW} - t < 1",
    ),
    "seconds in a variable": (
        rules.timed_assertions,
        "tests",
        "def test_it():\n    t = process_time()\n    s, n = process_time() - t, 1\n    assert s < 1",
    ),
    "seconds in a list": (
        rules.timed_assertions,
        "tests",
        "def test_it():\n    s = []\n    s.append(time.perf_counter())\n    assert min(s) < 1",
    ),
}
GOOD = {
    "an import of an earlier package": (
        rules.import_order,
        "modelfile",
        "from mlpconv.errors import ModelFileError\nfrom mlpconv import layers",
    ),
    "a server that imports the decoder": (rules.without_torch, "deploy", "from mlpconv.data.decode import decode"),
    "an import in cli": (
        rules.import_order,
        "cli",
        "from mlpconv.analysis import profile\nfrom mlpconv.fitting import fit",
    ),
    "safetensors": (rules.bans, "modelfile", "from safetensors.torch import load as tensors_in\ntensors_in(b'')"),
    "model.eval()": (rules.bans, "layers", "model.eval()\nre.compile('x')"),
    "print in cli": (rules.bans, "cli", "print(1)"),
    "no shell": (rules.bans, "data", "run(['ls'], shell=False)"),
    "a flag inside a function": (rules.import_effects, "training", "def f():\n    torch.set_num_threads(1)"),
    "a private function without a docstring": (
        rules.docstrings,
        "layers",
        '"""File."""\n__all__ = ["A"]\ndef helper(): ...',
    ),
    "pytest.raises": (rules.vacuous_tests, "tests", "def test_it():\n    with pytest.raises(E):\n        f()"),
    "a helper of the file": (rules.vacuous_tests, "tests", "def same(a):\n    assert a\ndef test_it():\n    same(1)"),
    "a helper's helper": (
        rules.vacuous_tests,
        "tests",
        "def a():\n    assert 1\ndef b():\n    a()\ndef test_it():\n    b()",
    ),
    "an overload": (rules.docstrings, "layers", '"""File."""\n@overload\ndef f(): ...'),
    "a clock beside an assertion": (
        rules.timed_assertions,
        "tests",
        "def test_it():\n    t, n = time.monotonic(), f()\n    assert n < 1",
    ),
    "a helper that checks": (rules.vacuous_tests, "tests", "def test_it():\n    check_maps(1)"),
}


@pytest.mark.parametrize(("rule", "package", "source"), BAD.values(), ids=BAD.keys())
def test_each_rule_catches(rule: Rule, package: str, source: str) -> None:
    assert list(rule(ast.parse(source), source, package)) != []


@pytest.mark.parametrize(("rule", "package", "source"), GOOD.values(), ids=GOOD.keys())
def test_each_rule_accepts(rule: Rule, package: str, source: str) -> None:
    assert list(rule(ast.parse(source), source, package)) == []
