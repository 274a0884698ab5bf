"""Texts, checks and sums of both sides: one idea a module; no module imports torch or JAX."""
