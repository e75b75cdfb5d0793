"""From a model file to production: export it, run it without torch, serve it.

`export` writes ONNX and OpenVINO files from a model file and needs torch. Everything else runs without it: `predictor`
classifies images with such a file, `server` answers HTTP requests, `guard` keeps any ASGI application within limits.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mlpconv.deploy.guard import Guard as Guard
    from mlpconv.deploy.limits import Limits as Limits
    from mlpconv.deploy.runner import serve_app as serve_app

_MODULE_OF = {"Guard": "guard", "Limits": "limits", "serve_app": "runner"}

__all__ = ["Guard", "Limits", "serve_app"]


def __getattr__(name: str) -> object:
    """Import a public name on first use; raises AttributeError for any other name."""
    from importlib import import_module

    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
