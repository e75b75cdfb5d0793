"""Low-rank factorization: candidates, activation statistics, sensitivity, the allocation of ranks, and distillation."""
