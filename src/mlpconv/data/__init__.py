"""Images in: named data sets and folders of images, as uint8 arrays in splits. Needs numpy and Pillow only."""

from __future__ import annotations

from mlpconv.data.dataset import Dataset, Split, holdout, make_dataset
from mlpconv.data.openers import open_data

__all__ = ["Dataset", "Split", "holdout", "make_dataset", "open_data"]
