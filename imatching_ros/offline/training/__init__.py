"""Offline training of the pretrained weights: rendered scenes and photographs with exact correspondences."""
