"""Tensor parallelism: one process a rank, a plan ring from rank 0 to the others, collectives between all."""
