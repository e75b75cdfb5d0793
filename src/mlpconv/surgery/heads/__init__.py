"""Classifier heads: find the head in a graph, track the layout of its tensors, and rewrite it on feature maps."""
