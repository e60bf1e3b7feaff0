"""The device side of the engine: slots, inputs, forward pass, sampling. The only place that runs torch steps."""
