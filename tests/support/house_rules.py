"""The rules of `tests/test_architecture.py`: each takes a parsed file and yields one message per violation."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from support.imports import dotted, imported

__all__ = [
    "ENTRY_POINTS", "EXPORTING", "MAY_IMPORT", "ORDER", "Rule", "bans", "docstrings", "import_effects", "import_order",
    "public_names", "sizes", "timed_assertions", "vacuous_tests", "without_torch",
]  # fmt: skip

# Data flows one way: a package imports itself and the packages before it. `python tests/support/imports.py` draws it.
ORDER = """
text lazy errors files cores threads decode_options predictions layers receptive_field models preprocessing data
modelfile inference training transfer evaluation temperature_scaling maps plots report fitting search claims deploy
explorer cli
""".split()
MAY_IMPORT = {package: set(ORDER[: position + 1]) for position, package in enumerate(ORDER)}
MAY_IMPORT["analysis"] = {"errors", "layers", "receptive_field", "analysis"}
MAY_IMPORT["surgery"] = {"errors", "layers", "models", "receptive_field", "analysis", "surgery"}
for _package in ("evaluation", "maps", "plots"):  # they read a model file, whoever trained it
    MAY_IMPORT[_package] -= {"training", "transfer"}
MAY_IMPORT["plots"] |= {"analysis"}
MAY_IMPORT["search"] |= {"analysis"}
MAY_IMPORT["deploy"] |= {"surgery"}
for _package in ("claims", "explorer", "cli"):
    MAY_IMPORT[_package] |= {"analysis", "surgery"}
# What runs where torch is not installed: the modules of deploy, except those that export.
EXPORTING = {"calibration", "exporting", "onnx_graph", "parity", "quantize", "exportable", "variants", "same_padding"}
WITHOUT_TORCH = {"text", "errors", "files", "cores", "decode_options", "predictions", "data", "deploy"}
ENTRY_POINTS = {"__init__", "__main__"}  # they may import every package

FILE_LINES, FUNCTION_LINES = 300, 60
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen")}
ASSERTING = re.compile(r"^(assert_|check_|raises$|fail$)")
CLOCK = re.compile(r"^(perf_counter|monotonic|process_time|thread_time)(_ns)?$")

Rule = Callable[[ast.Module, str, str], Iterator[str]]  # (tree, source, package) -> messages


def import_order(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    if package in ENTRY_POINTS:
        return
    for target, line in imported(tree):
        if target not in MAY_IMPORT[package]:
            yield f"line {line}: {package} imports {target}, which does not come before it"


def without_torch(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    """For a module of deploy that does not export: neither torch, nor modules that may import it."""
    for target, line in imported(tree):
        if target not in WITHOUT_TORCH:
            yield f"line {line}: {target} may import torch"
    for target, line in imported(tree, "mlpconv.deploy"):
        if target in EXPORTING:
            yield f"line {line}: deploy.{target} imports torch"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "torch" for alias in node.names):
            yield f"line {node.lineno}: torch"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield f"line {node.lineno}: torch"


def sizes(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    if (lines := len(source.splitlines())) > FILE_LINES:
        yield f"{lines} lines, at most {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}"


def bans(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if what := banned_statement(node) or banned_call(node, package):
            yield f"line {getattr(node, 'lineno', 0)}: {what}"
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"#.*\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b", line):
            yield f"line {number}: unfinished place"
        if re.search(r"\btorch\.(load|save)\b", line):  # in a text or safetensors.torch too: a search finds nothing
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


def banned_call(node: ast.AST, package: str) -> str:
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
        return f"{node.func.id}()"
    if isinstance(node.func, ast.Name) and node.func.id == "print" and package != "cli":
        return "print() outside cli"
    for keyword in node.keywords:
        if keyword.arg in ("shell", "allow_pickle") and not is_false(keyword.value):
            return f"{keyword.arg}="
    return ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def import_effects(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    """Yield each global flag of a backend, seed or environment variable that is set at import."""
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
    """Yield every node that runs at import: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from at_import(child)


def docstrings(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "the module has no docstring"
    public = public_names(tree)
    for node in tree.body:
        if any(dotted(decorator).endswith("overload") for decorator in getattr(node, "decorator_list", ())):
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def public_names(tree: ast.Module) -> set[str]:
    """Return the names in `__all__`, or every name without an underscore where there is no `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            return {str(inner.value) for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)}
    return {getattr(node, "name", "_") for node in tree.body if not getattr(node, "name", "_").startswith("_")}


def vacuous_tests(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    """Yield each test that asserts nothing, neither in its body nor through a helper in the same file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    asserting: set[str] = set()
    callers = {node.name for node in functions if any(is_assertion(inner) for inner in ast.walk(node))}
    while callers - asserting:
        asserting |= callers
        callers = {node.name for node in functions if calls(node) & asserting}
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


def timed_assertions(tree: ast.Module, source: str, package: str) -> Iterator[str]:
    """Yield each assertion on a duration: a busy machine fails it. Count work instead, with `support/work.py`."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            durations = clock_variables(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Assert) and reads_clock(node.test, durations):
                    yield f"line {node.lineno}: {function.name} asserts on seconds"


def clock_variables(function: ast.AST) -> set[str]:
    """Return the names of variables in a function that hold a time or a duration."""
    names: set[str] = set()
    for node in sorted(ast.walk(function), key=lambda node: getattr(node, "lineno", 0)):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            unpacked = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = list(zip(target.elts, value.elts, strict=False)) if unpacked else [(target, value)]
        elif isinstance(node, ast.AugAssign | ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            pairs = [(node.func.value, argument) for argument in node.args]
        names |= {dotted(target) for target, value in pairs if reads_clock(value, names)} - {""}
    return names


def reads_clock(node: ast.AST, durations: set[str]) -> bool:
    """Report whether an expression calls a clock or uses a variable that holds a duration."""
    return any(
        (isinstance(inner, ast.Call) and CLOCK.match(dotted(inner.func).split(".")[-1]))
        or dotted(inner) == "time.time"
        or (isinstance(inner, ast.Attribute) and inner.attr in ("lag", "elapsed"))
        or (isinstance(inner, ast.Name) and inner.id in durations | {"elapsed"})
        for inner in ast.walk(node)
    )
