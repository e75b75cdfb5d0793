"""Forward passes as graphs: trace a network, name its operations, and build a network from a rewritten graph."""
