"""Fixtures that the tests of fine-tuning share; one recording and one undisturbed run serve all of them."""

from finetuning_runs import collected, scene, straight
from learning_samples import make_sample

__all__ = ["collected", "make_sample", "scene", "straight"]
