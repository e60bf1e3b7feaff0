"""Layers of the decoder; every linear goes through one `LinearMethod`."""
