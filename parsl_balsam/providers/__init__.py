"""Ensemble blocks: what to request of which queue, and how schedulers are asked for it."""
