"""Attention over the paged KV cache. `base` is the contract; each backend is a module of its own."""
