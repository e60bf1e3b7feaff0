"""Model families: their configurations as `ModelSpec`, one configurable decoder, and the weights' way into it."""
