"""Configurations for machines: copy the module of yours, or import it from a clone."""
