"""A replay in the Rerun viewer (https://rerun.io; the extra `viewer`): poses, landmarks, matches and learning over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ConfigError
from ...camera.model import Camera
from ...core.types import Frame, OdometryOutput, TrackingState
from ...pipeline import Pipeline

APPLICATION = "imatching_ros"
INLIER, OUTLIER = (80, 220, 120), (230, 80, 60)  # RGB
JPEG_QUALITY = 80


def open_rerun(file: Path | None) -> Any:
    """The package rerun, with a window open, or with everything that is logged written to `file` (.rrd).

    Raises:
        ConfigError: rerun-sdk is not installed.
    """
    try:
        import rerun
    except ImportError:
        raise ConfigError(
            "the viewer needs the package rerun-sdk, which is not installed; pip install rerun-sdk"
        ) from None
    rerun.init(APPLICATION, spawn=file is None)
    if file is not None:
        rerun.save(str(file))
    return rerun


class Viewer:
    """Logs what `Pipeline.process` returns. The frame `world` is the odometry frame; lengths in metres where the scale is metric."""

    def __init__(self, camera: Camera, file: Path | None) -> None:
        """Opens a window, or writes everything to `file` (.rrd), which `rerun FILE` shows.

        Raises:
            ConfigError: rerun-sdk is not installed.
        """
        self._rr = rerun = open_rerun(file)
        rerun.log("world", rerun.ViewCoordinates.RDF, static=True)  # x right, y down, z forward of the first camera
        rerun.log(
            "world/camera",
            rerun.Pinhole(
                focal_length=(camera.fx, camera.fy),
                principal_point=(camera.cx, camera.cy),
                resolution=(camera.width, camera.height),
            ),
            static=True,
        )
        self._path: list[np.ndarray] = []
        self._map_id: int | None = None

    def add(self, frame: Frame, output: OdometryOutput, pipeline: Pipeline) -> None:
        """One frame and what odometry and learning made of it."""
        rr = self._rr
        rr.set_time("stamp", timestamp=np.datetime64(frame.stamp_ns, "ns"))
        image = frame.image.cpu().numpy()
        colour = rr.Image(image[0], "L") if len(image) == 1 else rr.Image(image.transpose(1, 2, 0), "RGB")
        rr.log("world/camera/image", colour.compress(jpeg_quality=JPEG_QUALITY))
        tracking = output.state is TrackingState.TRACKING
        rr.log("state", rr.TextLog(f"{output.state.value} {output.reason}", level="INFO" if tracking else "WARN"))
        self._add_matches(output)
        if output.T_WC is not None:
            self._add_pose(output.T_WC.cpu().numpy(), output.map_id)
        if output.bundle is not None:
            rr.log("world/landmarks", rr.Points3D(output.bundle.points_W.cpu().numpy(), radii=rr.Radius.ui_points(1.5)))
        learned = pipeline.learning_status()
        for name, value in (("steps", learned.step), ("promotions", learned.promotions)):
            rr.log(f"learning/{name}", rr.Scalars(value))
        rr.log("plots/inliers", rr.Scalars(output.inliers))

    def _add_matches(self, output: OdometryOutput) -> None:
        matches = output.matches
        if matches is None:
            self._rr.log("world/camera/image/matches", self._rr.Clear(recursive=False))
            return
        colours = np.where(matches.inlier.cpu().numpy()[:, None], INLIER, OUTLIER).astype(np.uint8)
        points = self._rr.Points2D(matches.uv_j.cpu().numpy(), colors=colours, radii=2.0)
        self._rr.log("world/camera/image/matches", points)

    def _add_pose(self, pose: np.ndarray, map_id: int) -> None:
        if map_id != self._map_id:
            self._path, self._map_id = [], map_id
        self._path.append(pose[:3])
        rotation = self._rr.Quaternion(xyzw=pose[3:])
        self._rr.log("world/camera", self._rr.Transform3D(translation=pose[:3], quaternion=rotation))
        self._rr.log(f"world/trajectory/{map_id}", self._rr.LineStrips3D([np.stack(self._path)]))
