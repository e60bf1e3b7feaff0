"""Triton kernels of the runtime, each beside its torch reference. Depends on torch and triton only."""
