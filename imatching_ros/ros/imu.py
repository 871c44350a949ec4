"""The gyroscope's messages on their way to the odometry: waited for, turned into the axes of the camera, passed on."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from ..pipeline import Pipeline
from . import transforms
from .convert import stamp_ns
from .level_start import LevelStart
from .lifecycle import ManagedNode
from .mount import CameraMount
from .params import NodeConfig
from .robot_pose import Start


class ImuInput:
    """Of the thread that owns the odometry; `messages` is filled by another.

    Attributes:
        messages: sensor_msgs/Imu in the order of their arrival, bounded.
        state: `off`, `used`, or why it is not used.
        level: what `odom` begins with.
    """

    WAITING = 10_000  # messages: 10 s at 1 kHz
    LONGEST_WAIT_S = 0.02  # of an image for messages up to its stamp; the newest is extrapolated by as long
    STALE_NS = 200_000_000  # messages that lie so far behind are not waited for
    VAIN_WAIT_IMAGES = 30  # that do not wait after one that has waited in vain
    PERSISTS = 10  # images in a row until a problem is logged

    def __init__(self, node: ManagedNode, config: NodeConfig, pipeline: Pipeline) -> None:
        self._node, self._config, self._pipeline = node, config, pipeline
        self.messages: deque[Any] = deque(maxlen=self.WAITING)
        self._gyroscope = pipeline.odometry.gyroscope
        self._gyroscope.expected = bool(config.imu_topic)
        self.level = LevelStart(bool(config.imu_topic))
        self._newest_ns: int | None = None
        self._unwaiting = self._problems = 0
        self.state = self._gyroscope.describe()

    def feed(self, image_ns: int, camera_frame: str, mount: CameraMount, T_optical_camera: np.ndarray) -> None:
        """Passes on what has arrived by the time of an image, after a short wait where the newest is still on its way."""
        if not self._config.imu_topic:
            return
        self._wait(image_ns)
        self._gyroscope.blocked = ""
        while self.messages and not self._gyroscope.blocked:
            self._pass_on(camera_frame, mount, T_optical_camera)

    def find_start(self, given: Start, T_BC: np.ndarray, first_ns: int, now_ns: int) -> Start | None:
        """Where the base is when the map begins (`LevelStart.find`); None while messages are waited for."""
        blocked = self._gyroscope.blocked if self._config.imu_topic else ""
        start = self.level.find(given, T_BC, first_ns, now_ns, blocked)
        if start is not None:
            self._node.get_logger().info(f"{self._config.odom_frame} begins {self.level.state}")
        return start

    def report(self) -> str:
        """After the image: the problem for its status; empty where there is none. It is logged when it persists."""
        self.state, problem = self._gyroscope.describe(), self._gyroscope.problem
        self._problems = self._problems + 1 if problem else 0
        text = f"the IMU is not used: {problem}" if problem else ""
        if self._problems >= self.PERSISTS:
            self._node.warn_throttled("imu", text)
        return text

    def _wait(self, image_ns: int) -> None:
        image_ns -= round(self._pipeline.config.imu.time_offset_ms * 1e6)
        self._unwaiting = max(0, self._unwaiting - 1)
        deadline_s = time.monotonic() + self.LONGEST_WAIT_S
        while (late_ns := image_ns - self._last_ns(image_ns)) > 0 and not self._unwaiting:
            if late_ns > self.STALE_NS:
                return
            if time.monotonic() > deadline_s:
                self._unwaiting = self.VAIN_WAIT_IMAGES
            time.sleep(0.001)

    def _last_ns(self, otherwise: int) -> int:
        """Stamp of the newest message."""
        if self.messages:
            return stamp_ns(self.messages[-1].header.stamp)
        return otherwise if self._newest_ns is None else self._newest_ns

    def _pass_on(self, camera_frame: str, mount: CameraMount, T_optical_camera: np.ndarray) -> None:
        """One batch of messages of a frame."""
        frame = self.messages[0].header.frame_id.lstrip("/")
        R_optical_imu = self._find_mounting(frame, camera_frame, mount)
        if R_optical_imu is None:
            self._gyroscope.blocked = (
                f"no TF from {frame or '(its messages name no frame)'} to {camera_frame or '(the images name no frame)'}; "
                "publish it or set camera_from_imu"
            )
            return
        R_camera_imu = T_optical_camera[:3, :3].T @ R_optical_imu
        while self.messages and self.messages[0].header.frame_id.lstrip("/") == frame:
            message = self.messages.popleft()
            self._newest_ns = stamp_ns(message.header.stamp)
            if message.angular_velocity_covariance[0] == -1:  # REP-145
                self._gyroscope.blocked = "its messages hold no angular velocity (covariance -1)"
                continue
            w = message.angular_velocity
            rate = R_camera_imu @ np.array([w.x, w.y, w.z])
            self._pipeline.add_angular_rate(self._newest_ns, rate)
            if not self.level.decided:
                offset_ns = round(self._pipeline.config.imu.time_offset_ms * 1e6)
                self.level.gravity.add(self._newest_ns + offset_ns, rate, R_camera_imu @ _read_force(message))

    def _find_mounting(self, frame: str, camera_frame: str, mount: CameraMount) -> np.ndarray | None:
        """(3, 3), the IMU's axes in the camera's optical frame; None while they are not known."""
        if any(self._config.camera_from_imu):
            return transforms.from_pose(np.array([0.0, 0.0, 0.0, *self._config.camera_from_imu]))[:3, :3]
        T_imu_optical = mount.camera_in(frame, camera_frame, self._newest_ns or 0) if frame else None
        return None if T_imu_optical is None else T_imu_optical[:3, :3].T


def _read_force(message: Any) -> np.ndarray:
    """Specific force (3,) m/s^2 about the axes of the IMU; NaN where there is none (REP-145)."""
    a = message.linear_acceleration
    return np.full(3, np.nan) if message.linear_acceleration_covariance[0] == -1 else np.array([a.x, a.y, a.z])
