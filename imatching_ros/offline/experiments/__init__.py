"""Experiments and benchmarks, and what serves them."""
