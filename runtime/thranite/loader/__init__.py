"""From a model name to files, and from a configuration to a memory plan."""
