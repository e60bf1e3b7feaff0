"""Triton kernels of the runtime, each beside its torch reference. Depends on torch and triton only.

One operation is one pair of files: `foo.py` holds the host wrapper, `foo_reference` in plain torch and `foo_work`
(declared bytes and FLOPs); `_foo.py` holds the device code. `target.py` has the device facts and every tile table,
`launch.py` what a launch is (run it, or compile it for a named target without a GPU), `catalog.py` lists every
specialisation, `testing.py` the one comparison of all tests. docs/kernels.md tells the formulas and the layouts.

Importing this package or any of its modules starts no driver and compiles nothing.
"""
