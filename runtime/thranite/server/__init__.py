"""A server process: wire formats on starlette. Never touches CUDA."""
