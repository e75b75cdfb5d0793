"""Load named data sets and folders of images as uint8 arrays in splits. Needs only NumPy and Pillow.

Importing the package is fast: each public name is imported from its module on first use, so that a program that only
decodes images starts sooner.
"""

from __future__ import annotations

from mlpconv.lazy import lazy_names

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mlpconv.data.dataset import Dataset as Dataset
    from mlpconv.data.dataset import Split as Split
    from mlpconv.data.dataset import make_dataset as make_dataset
    from mlpconv.data.openers import open_data as open_data
    from mlpconv.data.validation import holdout as holdout

_MODULE_OF = {
    "Dataset": "dataset",
    "Split": "dataset",
    "holdout": "validation",
    "make_dataset": "dataset",
    "open_data": "openers",
}

__all__ = ["Dataset", "Split", "holdout", "make_dataset", "open_data"]

__getattr__ = lazy_names(__name__, _MODULE_OF)
