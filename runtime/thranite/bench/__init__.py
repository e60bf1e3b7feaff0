"""Benchmarks of the engine in one process: reference workloads, floors, and a comparison on the CPU."""
