"""Folding: which layers merge exactly into the linear layer before them, and the arithmetic of the merge."""
