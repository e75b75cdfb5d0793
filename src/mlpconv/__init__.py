"""Network In Network on your own images: train, evaluate, predict, see class activation maps, rewrite networks.

Importing the package is fast: each public name is imported from its module on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers assume True; importing it from typing would dominate the import time

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlpconv import analysis as analysis
    from mlpconv import surgery as surgery
    from mlpconv.data import Dataset as Dataset
    from mlpconv.data import Split as Split
    from mlpconv.data import open_data as open_data
    from mlpconv.errors import MlpconvError as MlpconvError
    from mlpconv.evaluation import Evaluation as Evaluation
    from mlpconv.evaluation import evaluate as evaluate
    from mlpconv.fitting import Run as Run
    from mlpconv.fitting import fit as fit
    from mlpconv.inference import Classifier as Classifier
    from mlpconv.inference import Prediction as Prediction
    from mlpconv.inference import Predictions as Predictions
    from mlpconv.inference import load as load
    from mlpconv.layers import GlobalAveragePool as GlobalAveragePool
    from mlpconv.layers import Maxout as Maxout
    from mlpconv.layers import MLPConv as MLPConv
    from mlpconv.maps import category_maps as category_maps
    from mlpconv.modelfile import save as save
    from mlpconv.models.registry import create_model as create_model
    from mlpconv.models.registry import list_models as list_models
    from mlpconv.preprocessing import Preprocessing as Preprocessing
    from mlpconv.report import write_report as write_report
    from mlpconv.training.recipe import Recipe as Recipe

# Public name -> the module that defines it.
_MODULE_OF = {
    "Classifier": "inference",
    "Dataset": "data",
    "Evaluation": "evaluation",
    "GlobalAveragePool": "layers",
    "MLPConv": "layers",
    "Maxout": "layers",
    "MlpconvError": "errors",
    "Prediction": "inference",
    "Predictions": "inference",
    "Preprocessing": "preprocessing",
    "Recipe": "training.recipe",
    "Run": "fitting",
    "Split": "data",
    "category_maps": "maps",
    "create_model": "models.registry",
    "evaluate": "evaluation",
    "fit": "fitting",
    "list_models": "models.registry",
    "load": "inference",
    "open_data": "data",
    "save": "modelfile",
    "write_report": "report",
}
_SUBMODULES = (
    "analysis", "claims", "data", "deploy", "errors", "evaluation", "explorer", "inference", "layers", "maps",
    "modelfile", "models", "plots", "preprocessing", "search", "surgery", "transfer",
)  # fmt: skip

__all__ = [  # noqa: PLE0604  (the names are strings, read from the table above)
    "__version__",
    "analysis",
    "surgery",
    *sorted(_MODULE_OF),
]


def __getattr__(name: str) -> object:
    """Import a public name or a submodule on first use; raises AttributeError for any other name."""
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    from mlpconv.lazy import lazy_names  # here, so that importing the package imports nothing

    value = globals()[name] = lazy_names(__name__, _MODULE_OF)(name)
    return value


def __dir__() -> list[str]:
    """Return the public names, including those not imported yet."""
    return sorted({*globals(), *__all__, *_SUBMODULES})
