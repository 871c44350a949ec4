"""Bundle adjustment, the LOWER level: `solve` for windows, `refine_pose` for one frame, `triangulate` for landmarks. Pure functions on flat arrays."""

from .pose_refinement import PoseResult, View, refine_pose
from .solver import solve
from .triangulation import Triangulation, triangulate

__all__ = ["PoseResult", "Triangulation", "View", "refine_pose", "solve", "triangulate"]
