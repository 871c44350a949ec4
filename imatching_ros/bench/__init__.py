"""Measurements of speed against other solvers and of the whole pipeline."""
