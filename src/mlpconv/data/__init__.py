"""Load named data sets and folders of images as uint8 arrays in splits. Needs only NumPy and Pillow."""

from __future__ import annotations

from mlpconv.data.dataset import Dataset, Split, make_dataset
from mlpconv.data.openers import open_data
from mlpconv.data.validation import holdout

__all__ = ["Dataset", "Split", "holdout", "make_dataset", "open_data"]
