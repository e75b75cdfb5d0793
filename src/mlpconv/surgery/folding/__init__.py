"""Folding: the rules for merging layers exactly into a neighbouring linear layer, and the arithmetic."""
