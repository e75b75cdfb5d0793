"""Transfer learning: fit the classifier of a pretrained network on its features."""

from mlpconv.transfer.cache import FeatureCache as FeatureCache
from mlpconv.transfer.probe import linear_probe as linear_probe
