"""From a model file to production: export it, run it without torch, serve it.

`exporting` writes ONNX and OpenVINO files from a model file and needs torch. The rest runs without it: `predictor`
classifies images with such a file, `server` answers HTTP requests, `guard` keeps any ASGI application within limits.
"""

from __future__ import annotations

from mlpconv.lazy import lazy_names

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mlpconv.deploy.exportable import exportable_from_network as exportable_from_network
    from mlpconv.deploy.exporting import Exported as Exported
    from mlpconv.deploy.exporting import export as export
    from mlpconv.deploy.guard import Guard as Guard
    from mlpconv.deploy.limits import Limits as Limits
    from mlpconv.deploy.predictor import Predictor as Predictor
    from mlpconv.deploy.serving import serve_app as serve_app

_MODULE_OF = {
    "Exported": "exporting",
    "Guard": "guard",
    "Limits": "limits",
    "Predictor": "predictor",
    "export": "exporting",
    "serve_app": "serving",
    "exportable_from_network": "exportable",
}

__all__ = ["Exported", "Guard", "Limits", "Predictor", "export", "exportable_from_network", "serve_app"]

__getattr__ = lazy_names(__name__, _MODULE_OF)
