"""Classifier heads: find the head in a graph, follow the layout of its tensors, and rewrite it on feature maps."""
