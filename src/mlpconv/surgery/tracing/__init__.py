"""Trace a forward pass into a graph, classify its operations, and build a network from a rewritten graph."""
