"""Replicas from load: scrape the pods, decide purely, write the wish through /scale, say why."""
