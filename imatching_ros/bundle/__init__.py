"""Bundle adjustment, the LOWER level: `solve` for windows, `refine_pose` for one frame, `triangulate` for landmarks. Pure functions on flat arrays."""

from .pose_refinement import PoseResult, RotationPrior, View, refine_pose
from .solver import solve
from .triangulation import Triangulation, triangulate

__all__ = ["PoseResult", "RotationPrior", "Triangulation", "View", "refine_pose", "solve", "triangulate"]
