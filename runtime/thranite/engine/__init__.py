"""The engine: queue, scheduler, KV blocks and the step loop. Imports no torch; the device stands behind `Executor`."""
