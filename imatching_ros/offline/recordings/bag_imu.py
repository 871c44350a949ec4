"""The gyroscope of a bag: sensor_msgs/Imu."""

from __future__ import annotations

import numpy as np

from ...core.errors import SourceError
from .bag_reader import BagReader
from .bag_truth import camera_pose
from .imu import ImuRecording

IMU_TYPE = "sensor_msgs/msg/Imu"


def read_imu_topic(reader: BagReader, topic: str, image_topic: str) -> ImuRecording:
    """A topic of a bag; its static transforms connect the frames of the messages and of the image.

    Raises:
        SourceError: no transform connects the two, or no message holds an angular rate.
    """
    stamps, rates, frame = [], [], ""
    for _, _, message in reader.messages([topic]):
        if message.angular_velocity_covariance[0] == -1:  # REP-145: not measured
            continue
        w, stamp = message.angular_velocity, message.header.stamp
        stamps.append(int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec))
        rates.append((w.x, w.y, w.z))
        frame = message.header.frame_id
    if not stamps:
        raise SourceError(f"{topic} holds no message with an angular velocity")
    T = camera_pose(reader, frame, image_topic)
    if T is None:
        raise SourceError(f"no static transform of the bag connects '{frame}' of {topic} to the frame of {image_topic}")
    order = np.argsort(stamps, kind="stable")
    return ImuRecording(np.array(stamps, np.int64)[order], np.array(rates)[order]).turned(T[:3, :3].T)
