"""Bundle adjustment, the LOWER level: `solve` for windows, `refine_pose` for one frame, `triangulate` for landmarks. Pure functions on flat arrays."""

from .missing_parameter import MissingParameter, estimate_missing
from .pose_refinement import Correction, PoseResult, RotationPrior, View, refine_pose
from .relative_rotations import RelativeRotations
from .solver import solve
from .triangulation import Triangulation, triangulate

__all__ = [
    "MissingParameter",
    "PoseResult",
    "RelativeRotations",
    "Correction",
    "RotationPrior",
    "Triangulation",
    "View",
    "estimate_missing",
    "refine_pose",
    "solve",
    "triangulate",
]
