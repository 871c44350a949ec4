"""External odometry over DDS: one node receives the wheel odometry of its base; the other none, then that of a frame without TF."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, make_stamp, send_until, wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation, Slerp
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from imatching_ros.ros import transforms

pytestmark = [pytest.mark.ros, pytest.mark.slow]

# Of the camera on the base: ahead and above.
MOUNT = transforms.from_pose(np.array([0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]))


def wheels(tour, child: str = "base_link") -> list[Odometry]:
    """Poses of the base at 50 Hz, in a frame of their own."""
    stamps = np.array([shot.stamp_ns for shot in tour])
    bases = np.array([transforms.from_pose(shot.T_WC) @ transforms.inverse(MOUNT) for shot in tour])
    turns = Slerp(stamps - stamps[0], Rotation.from_matrix(bases[:, :3, :3]))
    messages = []
    for stamp in range(int(stamps[0]), int(stamps[-1]) + 1, 20_000_000):
        message = Odometry(child_frame_id=child)
        message.header.stamp, message.header.frame_id = make_stamp(stamp), "wheel_odom"
        p, q = message.pose.pose.position, message.pose.pose.orientation
        p.x, p.y, p.z = (float(np.interp(stamp, stamps, bases[:, axis, 3])) for axis in range(3))
        q.x, q.y, q.z, q.w = (float(v) for v in turns(stamp - stamps[0]).as_quat())
        messages.append(message)
    return messages


def stamp_of(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.fixture(scope="module")
def run(peer: Peer, start_node, tour) -> SimpleNamespace:
    """The tour for both nodes; the wheels for one of them."""
    parameters = {"external_odometry.use": "both", "no_data_warning_s": 1.0, "tf_timeout_s": 30.0}
    cameras = ("-r", "image:=/cam/image")
    driven = start_node(parameters, (*cameras, "-r", "__ns:=/driven", "-r", "external_odometry:=/wheels/odom"))
    alone = start_node(parameters, (*cameras, "-r", "__ns:=/alone"))
    T = TransformStamped(child_frame_id="optical")
    T.header.frame_id = "base_link"
    T.transform.translation.x, T.transform.translation.z = 0.2, 0.5
    r = T.transform.rotation
    r.x, r.y, r.z, r.w = -0.5, 0.5, -0.5, 0.5
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    peer.node.create_publisher(TFMessage, "/tf_static", latched).publish(TFMessage(transforms=[T]))
    seen = {}
    for name in ("driven", "alone"):
        seen[name] = SimpleNamespace(
            status=peer.collect(Status, f"/{name}/imatching/status"), odom=peer.collect(Odometry, f"/{name}/odom")
        )
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
    for node in (driven, alone):
        node.wait_for("active")
    for name in seen:
        peer.meet(f"/{name}/imatching")
    infos, images = (
        peer.publisher(CameraInfo, "/cam/camera_info", subscribers=2),
        peer.publisher(Image, "/cam/image", subscribers=2),
    )
    driver = peer.publisher(Odometry, "/wheels/odom")
    waiting = wheels(tour)
    for count, shot in enumerate(tour, 1):
        while waiting and stamp_of(waiting[0]) <= shot.stamp_ns:
            driver.publish(waiting.pop(0))
        time.sleep(0.02)  # wheels are faster than cameras

        def send(shot=shot) -> None:
            infos.publish(info_message(shot.stamp_ns, shot.camera))
            images.publish(image_message(shot.stamp_ns, shot.image, "rgb8"))

        send_until(
            send,
            lambda count=count: all(len(s.status) >= count for s in seen.values()),
            f"image {count}:\n{driven.output}\n{alone.output}",
        )

    def newest(name: str) -> DiagnosticStatus | None:
        mine = [m.status[0] for m in diagnostics if m.status[0].name.startswith(f"/{name}/")]
        return mine[-1] if mine else None

    before = len(diagnostics)
    wait_until(lambda: len(diagnostics) >= before + 4, what="diagnostics")
    return SimpleNamespace(
        nodes={"driven": driven, "alone": alone},
        newest=newest,
        send=send,
        peer=peer,
        **seen,
        texts={n: newest(n) for n in seen},
    )


def length(positions: np.ndarray) -> float:
    return float(np.linalg.norm(positions - positions[0], axis=1).max())


def test_wheels_give_one_camera_its_scale(run, tour):
    assert (
        run.driven.status[-1].metric
        and run.driven.status[-1].scale == "odometry"
        and run.driven.status[-1].state == Status.TRACKING
    )
    truth = {s.stamp_ns: (transforms.from_pose(s.T_WC) @ transforms.inverse(MOUNT))[:3, 3] for s in tour}
    positions = np.array(
        [[m.pose.pose.position.x, m.pose.pose.position.y, m.pose.pose.position.z] for m in run.driven.odom]
    )
    true = np.array([truth[stamp_of(m)] for m in run.driven.odom])
    # It drifts a little within the way.
    assert length(true) > 0.4 and length(positions) == pytest.approx(length(true), rel=0.06)


def test_use_is_reported(run):
    values = {entry.key: entry.value for entry in run.texts["driven"].values}
    assert values["external odometry"] == "used"


def test_without_it_odometry_continues_and_reports_why(run):
    assert len(run.alone.odom) == len(run.driven.odom)
    last = run.alone.status[-1]
    assert last.state == Status.TRACKING and not last.metric and last.scale == "unknown: no odometry has arrived"
    values = {entry.key: entry.value for entry in run.texts["alone"].values}
    assert values["external odometry"] == "no odometry has arrived"
    log = run.nodes["alone"].output
    assert "nothing received on /alone/external_odometry for" in log and "topics of type nav_msgs/msg/Odometry" in log
    assert "remap with -r external_odometry:=TOPIC" in log


def test_a_frame_without_tf_is_reported(run, tour):
    driver = run.peer.publisher(Odometry, "/alone/external_odometry")
    count = len(run.alone.status)
    for message in wheels(tour, "front_axle")[-5:]:
        driver.publish(message)
    shot = tour[-1]
    images = run.peer.publisher(Image, "/cam/image", subscribers=2)
    stamps = iter(range(shot.stamp_ns + 10**8, shot.stamp_ns + 10**10, 10**8))
    send_until(
        lambda: images.publish(image_message(next(stamps), shot.image, "rgb8")),
        lambda: len(run.alone.status) > count,
        "an image",
    )
    wait_until(
        lambda: (
            {e.key: e.value for e in run.newest("alone").values}["external odometry"]
            == "no TF from front_axle to optical"
        ),
        what="the reason in /diagnostics",
    )
    assert run.newest("alone").level in (DiagnosticStatus.WARN, DiagnosticStatus.STALE)
    assert run.alone.status[-1].scale == "unknown: no TF from front_axle to optical"
    assert "external odometry not used: no TF from front_axle to optical" in run.nodes["alone"].output


def test_both_end_cleanly(run):
    for node in run.nodes.values():
        assert node.stop() == 0
        assert "internal error" not in node.output and "Traceback" not in node.output
