"""Fixtures that other folders use too."""

from learning_samples import make_sample

__all__ = ["make_sample"]
