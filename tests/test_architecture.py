"""The house rules, read from the source with `ast`: which room may import which, sizes, bans, tests that can fail.

A rule is a function from a parsed file to the sentences that say what breaks it; each has bad snippets below to catch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "src" / "mlpconv"

# Data flows one way: a room imports itself and the rooms above it.
ORDER = """
text errors files threads decode_options layers receptive_field models preprocessing data modelfile inference training
transfer
evaluation maps plots report fitting cli
""".split()
MAY_IMPORT = {room: set(ORDER[: position + 1]) for position, room in enumerate(ORDER)}
MAY_IMPORT["analysis"] = {"errors", "layers", "receptive_field", "analysis"}
MAY_IMPORT["surgery"] = {"errors", "layers", "models", "receptive_field", "analysis", "surgery"}
MAY_IMPORT["plots"] |= {"analysis"}
MAY_IMPORT["cli"] |= {"analysis", "surgery"}
FRONT_DOOR = {"__init__", "__main__"}  # the package's own face may name every room
NOT_CODE = {"py.typed", "recipes", "weights", "__pycache__"}

FILE_LINES, FUNCTION_LINES = 300, 60
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen")}
ASSERTING = re.compile(r"^(assert_|check_|raises$|fail$)")

Rule = Callable[[ast.Module, str, str], Iterator[str]]  # (tree, source, room) -> sentences


def imported_rooms(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each `mlpconv` room that a file imports, and the line; the package itself counts as the room `mlpconv`."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["mlpconv.(relative)"]
        elif isinstance(node, ast.ImportFrom) and node.module == "mlpconv":
            names = [f"mlpconv.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mlpconv":
                yield (parts[1] if len(parts) > 1 else "mlpconv"), getattr(node, "lineno", 0)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, and "" for anything else."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def arrows(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    if room in FRONT_DOOR:
        return
    for target, line in imported_rooms(tree):
        if target not in MAY_IMPORT[room]:
            yield f"line {line}: {room} imports {target}, which is not above it"


def sizes(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    if (lines := len(source.splitlines())) > FILE_LINES:
        yield f"{lines} lines, at most {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}"


def bans(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if what := banned_statement(node) or banned_call(node, room):
            yield f"line {getattr(node, 'lineno', 0)}: {what}"
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"#.*\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b", line):
            yield f"line {number}: unfinished place"
        if re.search(r"\btorch\.(load|save)\(", line):  # of safetensors.torch too: who searches should find nothing
            yield f"line {number}: reads like torch.load or torch.save"


def banned_statement(node: ast.AST) -> str:
    if isinstance(node, ast.Assert):
        return "assert"
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if any(module.split(".")[0] in BANNED_MODULES for module in modules):
            return f"import of {', '.join(modules)}"
        if any(alias.name == "*" for alias in node.names):
            return "star import"
        if isinstance(node, ast.ImportFrom) and any((node.module, a.name) in BANNED_ATTRIBUTES for a in node.names):
            return f"import of a banned name from {node.module}"
    if isinstance(node, ast.Attribute) and (dotted(node.value), node.attr) in BANNED_ATTRIBUTES:
        return dotted(node)
    return ""


def banned_call(node: ast.AST, room: str) -> str:
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
        return f"{node.func.id}()"
    if isinstance(node.func, ast.Name) and node.func.id == "print" and room != "cli":
        return "print() outside cli"
    for keyword in node.keywords:
        if keyword.arg in ("shell", "allow_pickle") and not is_false(keyword.value):
            return f"{keyword.arg}="
    return ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def import_effects(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    """Global flags of a backend that are set when a file is imported."""
    for node in at_import(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        names = [dotted(target) for target in targets]
        if isinstance(node, ast.Call):
            names = [dotted(node.func)]
        for name in names:
            if re.match(
                r"torch\.(backends\.|set_|manual_seed|use_deterministic|\w+\.manual_seed)|np\.random\.seed|os\.environ",
                name,
            ):
                yield f"line {getattr(node, 'lineno', 0)}: {name} at import"


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the file is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from at_import(child)


def docstrings(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "the file says nothing about itself"
    public = public_names(tree)
    for node in tree.body:
        if any(dotted(decorator).endswith("overload") for decorator in getattr(node, "decorator_list", ())):
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def public_names(tree: ast.Module) -> set[str]:
    """What `__all__` lists, or every name without an underscore in a file that has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            return {str(inner.value) for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)}
    return {getattr(node, "name", "_") for node in tree.body if not getattr(node, "name", "_").startswith("_")}


def vacuous_tests(tree: ast.Module, source: str, room: str) -> Iterator[str]:
    """Tests that assert nothing, neither themselves nor through a helper of the same file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    asserting: set[str] = set()
    found = {node.name for node in functions if any(is_assertion(inner) for inner in ast.walk(node))}
    while found - asserting:
        asserting |= found
        found = {node.name for node in functions if calls(node) & asserting}
    for node in functions:
        if node.name.startswith("test_") and node.name not in asserting:
            yield f"line {node.lineno}: {node.name} asserts nothing"


def calls(function: ast.AST) -> set[str]:
    return {dotted(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}


def is_assertion(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)
    return bool(ASSERTING.match(name))


RULES: tuple[Rule, ...] = (arrows, sizes, bans, import_effects, docstrings)
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((TOP / "tests").rglob("test_*.py"))
TOOLS = sorted([*(TOP / "benchmarks").rglob("*.py"), *(TOP / "examples").rglob("*.py")])


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def broken(path: Path, rules: tuple[Rule, ...], room: str) -> list[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    return [f"{rule.__name__}: {sentence}" for rule in rules for sentence in rule(tree, source, room)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_keeps_every_rule(path: Path) -> None:
    problems = broken(path, RULES, room_of(path))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: str(path.relative_to(TOP)))
def test_scripts_keep_the_sizes(path: Path) -> None:
    problems = broken(path, (sizes, docstrings), "script")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(TOP / "tests")))
def test_every_test_can_fail(path: Path) -> None:
    problems = broken(path, (vacuous_tests,), "tests")
    assert not problems, "\n".join(problems)


def test_every_room_has_its_place_and_its_tests() -> None:
    found = {room_of(path) for path in PACKAGE.iterdir()} - NOT_CODE - FRONT_DOOR
    assert found == set(MAY_IMPORT)
    tested = {path.name.removesuffix(".py").removeprefix("test_") for path in (TOP / "tests").iterdir()}
    assert set(MAY_IMPORT) <= tested


BAD = {
    "an arrow backwards": (arrows, "layers", "from mlpconv.models import registry"),
    "an arrow backwards, inside a function": (arrows, "data", "def f():\n    import mlpconv.training.loop"),
    "an arrow backwards, by name": (arrows, "data", "import importlib\nimportlib.import_module('mlpconv.fitting')"),
    "the front door from inside": (arrows, "modelfile", "from mlpconv import fit"),
    "a relative import": (arrows, "models", "from . import nin"),
    "analysis knows only layers": (arrows, "analysis", "from mlpconv.models.registry import create_model"),
    "a long file": (sizes, "layers", "x = 1\n" * 301),
    "a long function": (sizes, "layers", "def f():\n" + "    x = 1\n" * 60),
    "assert": (bans, "layers", "assert True"),
    "print": (bans, "layers", "def f():\n    print(1)"),
    "eval": (bans, "layers", "eval('1')"),
    "exec": (bans, "cli", "exec('1')"),
    "pickle": (bans, "modelfile", "import pickle"),
    "pickle, from": (bans, "modelfile", "def f():\n    from pickle import loads"),
    "torch.load": (bans, "modelfile", "import torch\ntorch.load('x')"),
    "torch.load, renamed": (bans, "modelfile", "from torch import load as read"),
    "torch.load, by its look": (bans, "modelfile", "import safetensors.torch\nsafetensors.torch.load(b'')"),
    "numpy with pickle": (bans, "data", "np.load('x', allow_pickle=True)"),
    "a shell": (bans, "data", "run('ls', shell=True)"),
    "a shell, by a variable": (bans, "data", "run('ls', shell=yes)"),
    "a star import": (bans, "layers", "from math import *"),
    "an unfinished place": (bans, "layers", "x = 1  # " + "TODO later"),
    "a method for others to write": (bans, "models", "def f():\n    raise " + "NotImplementedError"),
    "a flag at import": (import_effects, "layers", "import torch\ntorch.backends.cudnn.benchmark = True"),
    "a flag at import, in an if": (import_effects, "layers", "if True:\n    torch.set_num_threads(1)"),
    "a silent function": (docstrings, "layers", '"""File."""\ndef area(): ...'),
    "a silent class, listed": (docstrings, "layers", '"""File."""\n__all__ = ["A"]\nclass A: ...'),
    "a silent file": (docstrings, "layers", "x = 1"),
    "a helper that only computes": (vacuous_tests, "tests", "def f():\n    return 1\ndef test_it():\n    f()"),
    "a test without an assertion": (vacuous_tests, "tests", "def test_it():\n    f()"),
}
GOOD = {
    "an arrow forwards": (arrows, "modelfile", "from mlpconv.errors import ModelFileError\nfrom mlpconv import layers"),
    "cli sees all": (arrows, "cli", "from mlpconv.analysis import profile\nfrom mlpconv.fitting import fit"),
    "safetensors": (bans, "modelfile", "from safetensors.torch import load as tensors_in\ntensors_in(b'')"),
    "model.eval()": (bans, "layers", "model.eval()\nre.compile('x')"),
    "print in cli": (bans, "cli", "print(1)"),
    "no shell": (bans, "data", "run(['ls'], shell=False)"),
    "a flag inside a function": (import_effects, "training", "def f():\n    torch.set_num_threads(1)"),
    "a silent helper": (docstrings, "layers", '"""File."""\n__all__ = ["A"]\ndef helper(): ...'),
    "pytest.raises": (vacuous_tests, "tests", "def test_it():\n    with pytest.raises(E):\n        f()"),
    "a helper of the file": (vacuous_tests, "tests", "def same(a):\n    assert a\ndef test_it():\n    same(1)"),
    "a helper's helper": (
        vacuous_tests,
        "tests",
        "def a():\n    assert 1\ndef b():\n    a()\ndef test_it():\n    b()",
    ),
    "an overload": (docstrings, "layers", '"""File."""\n@overload\ndef f(): ...'),
    "a helper that checks": (vacuous_tests, "tests", "def test_it():\n    check_maps(1)"),
}


@pytest.mark.parametrize(("rule", "room", "source"), BAD.values(), ids=BAD.keys())
def test_each_rule_catches(rule: Rule, room: str, source: str) -> None:
    assert list(rule(ast.parse(source), source, room)) != []


@pytest.mark.parametrize(("rule", "room", "source"), GOOD.values(), ids=GOOD.keys())
def test_each_rule_lets_pass(rule: Rule, room: str, source: str) -> None:
    assert list(rule(ast.parse(source), source, room)) == []
