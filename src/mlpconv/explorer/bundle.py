"""Join the page's ES modules into one classic script: browsers refuse to load modules from file://.

The modules use two forms only: `import {a, b} from "./x.js";`, and `export` before a declaration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlpconv.errors import UsageError

__all__ = ["bundle"]

IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class) (\w+))", re.MULTILINE)


def bundle(modules: Mapping[str, str], entry: str) -> str:
    """Return one strict script that runs module `entry` with everything it imports; raise UsageError for a cycle."""
    order: list[str] = []
    _visit(entry, modules, order, ())
    parts = [f"modules[{name!r}] = (() => {{\n{_as_function(modules[name])}\n}})();" for name in order]
    return "\n".join(["(() => {", '"use strict";', "const modules = {};", *parts, "})();", ""])


def _visit(name: str, modules: Mapping[str, str], order: list[str], path: tuple[str, ...]) -> None:
    """Append a module after everything that it imports."""
    if name in path or name not in modules:
        raise UsageError(f"The modules {' -> '.join((*path, name))} cannot be joined: a cycle, or a missing file.")
    if name not in order:
        for _, imported in IMPORT.findall(modules[name]):
            _visit(imported, modules, order, (*path, name))
        order.append(name)


def _as_function(source: str) -> str:
    """Return the body of a function that returns the exports of a module."""
    exports = ", ".join(EXPORT.findall(source))
    body = IMPORT.sub(lambda match: f'const {{{match[1]}}} = modules["{match[2]}"];', source)
    return f"{EXPORT.sub('', body)}\nreturn {{{exports}}};"
