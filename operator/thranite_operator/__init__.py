"""The control plane: a kopf operator that turns InferenceService objects into serving pods."""
