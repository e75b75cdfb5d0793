"""Which package of mlpconv imports which, read from the source with `ast`, and a picture of it.

    python tests/support/imports.py             the packages
    python tests/support/imports.py surgery     the submodules of one package

Prints a Mermaid graph, which GitHub and most editors draw. An arrow that follows from two others is left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PACKAGE", "dotted", "import_graph", "imported", "mermaid", "top_name"]

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "mlpconv"


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for a chain of names, and "" for any other node."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.Module, parent: str = "mlpconv") -> Iterator[tuple[str, int]]:
    """Yield (name, line) for each import of a direct child of `parent`, and for each import of `parent` itself.

    Imports inside functions and `importlib.import_module("...")` count; a relative import yields "(relative)".
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"{parent}.(relative)"]
        elif isinstance(node, ast.ImportFrom) and node.module == parent:
            names = [f"{parent}.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name == parent or name.startswith(f"{parent}."):
                child = name[len(parent) + 1 :].split(".")[0]
                yield child or parent.rpartition(".")[2], getattr(node, "lineno", 0)


def top_name(path: Path, folder: Path = PACKAGE) -> str:
    """Return the name of the package or module directly under `folder` that a file belongs to."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


def import_graph(package: str = "") -> dict[str, set[str]]:
    """Map each package under `mlpconv`, or each submodule of one package, to its siblings that it imports."""
    folder, parent = PACKAGE / package, f"mlpconv.{package}".rstrip(".")
    graph: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        if (name := top_name(path, folder)) not in ("__init__", "__main__"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            graph.setdefault(name, set()).update(target for target, _ in imported(tree, parent))
    return {name: (targets - {name}) & graph.keys() for name, targets in graph.items()}


def mermaid(graph: dict[str, set[str]]) -> str:
    """Return the graph as Mermaid text, without the arrows that follow from others."""
    reachable: dict[str, set[str]] = {name: set() for name in graph}
    for _ in graph:
        for name, targets in graph.items():
            reachable[name] |= targets.union(*(reachable[target] for target in targets))
    lines = ["graph BT"]
    for name, targets in graph.items():
        direct = {
            t for t in targets if not any(t in reachable[via] and via not in reachable[t] for via in targets - {t})
        }
        lines += [f"  {name} --> {target}" for target in sorted(direct)] or [f"  {name}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(mermaid(import_graph(*sys.argv[1:2])))
