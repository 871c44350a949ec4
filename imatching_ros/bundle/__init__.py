"""Bundle adjustment, the LOWER level: `solve` for windows, `refine_pose` for one frame. Pure functions on flat arrays."""

from .marginal import marginalize
from .pose_refinement import PoseResult, refine_pose
from .priors import MarginalPrior, PointPrior, PosePrior
from .solver import solve

__all__ = ["MarginalPrior", "PointPrior", "PosePrior", "PoseResult", "marginalize", "refine_pose", "solve"]
