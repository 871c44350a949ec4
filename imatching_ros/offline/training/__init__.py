"""Offline training of the shipped weights: rendered scenes and photographs with exact correspondences."""
