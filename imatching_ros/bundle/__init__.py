"""Bundle adjustment, the LOWER level: `solve` for windows, `refine_pose` for one frame. Pure functions on flat arrays."""

from .pose_refinement import PoseResult, refine_pose
from .solver import solve

__all__ = ["PoseResult", "refine_pose", "solve"]
