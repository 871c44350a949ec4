"""The launch files in the real `ros2 launch`, where it is installed: they start, work, end, and leave nothing behind."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from peers import ROOT, NodeProcess, Peer, image_message, info_message, send_until, wait_until
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import CameraInfo, Image
from test_files import load_launch
from walls import CAMERA, look

from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence

pytestmark = [pytest.mark.ros, pytest.mark.slow]

# Not find_spec("launch"): the folder launch/ of the source tree would do.
needs_launch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("launch_ros", "ros2cli", "ros2launch")),
    reason="ros2 launch is not installed: the launch files were compared with the code, not started",
)
QUICK = "/**: {ros__parameters: {matcher.name: klt, learning.mode: sync, base_frame: optical}}"


class Launched:
    """`ros2 launch imatching_ros ...` in a process of its own."""

    ENDING_S = 5.0  # launch sends SIGTERM after that

    def __init__(self, domain: int, folder: Path, *arguments: str) -> None:
        self.log = folder / "launch.txt"
        settings = folder / "mine.yaml"
        settings.write_text(QUICK)
        program = ("-c", "import sys; from ros2cli.cli import main; sys.exit(main())", "launch", "imatching_ros")
        environment = NodeProcess.environment(domain) | {"ROS_LOG_DIR": str(folder), "ROS_HOME": str(folder)}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *program, *(argument.format(mine=settings) for argument in arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[int]:
        """Process numbers of everything that was started, in order."""
        return [int(number) for number in re.findall(r"process started with pid \[(\d+)\]", self.output)]

    def interrupt(self) -> int:
        """SIGINT to launch alone, which has to pass it on; returns its exit code."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        assert time.monotonic() - begin < self.ENDING_S and "SIGTERM" not in self.output, self.output
        return code


def find_processes(variable: str) -> list[int]:
    """Those that have `NAME=value` in their environment. (launch does not log what it leaves behind.)"""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or of another user
            if variable.encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


@contextmanager
def launched(domain: int, folder: Path, *arguments: str) -> Iterator[Launched]:
    process = Launched(domain, folder, *arguments)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.send_signal(signal.SIGINT)
        process.process.wait(60)
        left = find_processes(f"ROS_HOME={folder}")
        for number in left:
            os.kill(number, signal.SIGKILL)
        assert not left, f"launch has left processes behind:\n{process.output}"


def drive(peer: Peer, topics: tuple[str, str, str], odom: str, log: Launched) -> list[Odometry]:
    """Images, their CameraInfo and depth on the topics until there is odometry."""
    odometry = peer.collect(Odometry, odom)
    kinds = (Image, CameraInfo, Image)
    images, infos, depths = (peer.publisher(kind, topic) for kind, topic in zip(kinds, topics, strict=True))
    image, depth = look()
    stamp = 0

    def send() -> None:
        nonlocal stamp
        stamp += 10**9
        infos.publish(info_message(stamp, CAMERA))
        depths.publish(image_message(stamp, depth, "32FC1"))
        images.publish(image_message(stamp, image, "mono8"))

    send_until(send, lambda: len(odometry) > 0, f"odometry:\n{log.output}")
    return odometry


@needs_launch
def test_online_launch_starts_the_node(domain, peer: Peer, tmp_path: Path):
    """The rest of its settings from the mode's file; images in, odometry out; ended by SIGINT within what launch allows."""
    arguments = ("image_topic:=/cam/image", "depth_topic:=/cam/depth", "mode:=rgbd", "params_file:={mine}")
    with launched(domain, tmp_path, "online.launch.py", *arguments, "learning:=off", "namespace:=robot") as launch:
        drive(peer, ("/cam/image", "/cam/camera_info", "/cam/depth"), "/robot/odom", launch)
        names = ["sync_slop_s", "learning.mode", "base_frame"]
        of_mode, of_argument, of_mine = peer.call(GetParameters, "/robot/imatching/get_parameters", names=names).values
        assert (of_mode.double_value, of_argument.string_value, of_mine.string_value) == (0.02, "off", "optical")
        assert launch.interrupt() == 0 and "process has finished cleanly" in launch.output, launch.output


@needs_launch
def test_a_node_that_is_killed_starts_again_and_obeys_its_manager(domain, peer: Peer, tmp_path: Path):
    arguments = ("params_file:={mine}", "respawn:=true", "autostart:=false", "namespace:=again")
    with launched(domain, tmp_path, "online.launch.py", *arguments) as launch:

        def change(transition: int) -> int:
            """The state after a transition."""
            request = Transition(id=transition)
            assert peer.call(ChangeState, "/again/imatching/change_state", transition=request).success, launch.output
            return peer.call(GetState, "/again/imatching/get_state").current_state.id

        assert change(Transition.TRANSITION_CONFIGURE) == State.PRIMARY_STATE_INACTIVE
        os.kill(launch.children[0], signal.SIGKILL)
        wait_until(lambda: len(launch.children) == 2, what=f"another process:\n{launch.output}")
        wait_until(lambda: peer.node.count_publishers("/again/odom") == 0, what="the end of the first node")
        for transition, state in (
            (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_INACTIVE),
            (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE),
            (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
        ):
            assert change(transition) == state, launch.output
        assert launch.interrupt() == 0, launch.output


@needs_launch
def test_camera_launch_runs_on_the_topics_of_the_driver(domain, peer: Peer, tmp_path: Path):
    arguments = ("camera:=d435i_rgbd", "driver:=false", "params_file:={mine}", "base_frame:=optical", "learning:=off")
    topics = "/camera/camera/color/image_raw", "/camera/camera/color/camera_info"
    with launched(domain, tmp_path, "camera.launch.py", *arguments) as launch:
        drive(peer, (*topics, "/camera/camera/aligned_depth_to_color/image_raw"), "/odom", launch)
        assert launch.interrupt() == 0, launch.output


# A driver whose launch file has arguments of the names that those of the node have.
STUB = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo
from launch.substitutions import LaunchConfiguration

DEFAULTS = dict(params_file="driver.yaml", parent_frame="base", camera_model="none", name="none", serial_number="0", namespace="none")

def generate_launch_description():
    arguments = [DeclareLaunchArgument(name, default_value=value) for name, value in DEFAULTS.items()]
    arguments.append(DeclareLaunchArgument("use_sim_time", default_value="false", choices=["true", "false"]))
    values = [[f"driver: {a.name}=", LaunchConfiguration(a.name), "; "] for a in arguments]
    return LaunchDescription([*arguments, LogInfo(msg=sum(values, []))])
"""


def install(prefix: Path, package: str, file: str, text: str) -> None:
    """A package that has one file."""
    path, marker = prefix / file, prefix / "share" / "ament_index" / "resource_index" / "packages" / package
    for made in (path, marker):
        made.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    path.write_text(text)
    path.chmod(0o755)


@needs_launch
def test_nav2_launch_has_everything_in_the_namespace(domain, peer: Peer, tmp_path: Path, monkeypatch):
    """With programs in place of the filter and the manager, which print what they were given."""
    for package, program in (("robot_localization", "ekf_node"), ("nav2_lifecycle_manager", "lifecycle_manager")):
        script = f"#!/bin/sh\necho {program}: $*\nfor a in $*; do test -f $a && cat $a; done\necho {program} ends\n"
        install(tmp_path, package, f"lib/{package}/{program}", script)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ['AMENT_PREFIX_PATH']}")
    arguments = ("camera:=d435i_rgbd", "driver:=false", "params_file:={mine}", "namespace:=robot1", "learning:=off")
    with launched(domain, tmp_path, "nav2.launch.py", *arguments, "odom_frame:=r1/odom") as launch:
        wait_until(lambda: launch.output.count(" ends") == 2, 60.0, f"both programs:\n{launch.output}")
        for program in ("ekf_node", "lifecycle_manager"):
            assert re.search(rf"{program}: .*__ns:=/robot1( |$)", launch.output, re.M), launch.output
        assert re.search("odom0: visual_odometry$", launch.output, re.M) and "world_frame: r1/odom" in launch.output
        request = Transition(id=Transition.TRANSITION_CONFIGURE)
        assert peer.call(ChangeState, "/robot1/imatching/change_state", transition=request).success, launch.output
        wait_until(lambda: peer.node.count_publishers("/robot1/visual_odometry") == 1, what="the node's topic")
        assert launch.interrupt() == 0, launch.output


@needs_launch
@pytest.mark.parametrize(
    ("camera", "package", "file", "changed"),
    [
        ("zed_stereo", "zed_wrapper", "zed_camera", {"camera_model": "zed2i"}),
        ("oak_rgbd", "depthai_ros_driver", "camera", {"name": "oak"}),
    ],
)
def test_a_driver_has_its_own_arguments(domain, tmp_path: Path, monkeypatch, camera, package, file, changed):
    """Not those of the node; what the node does not know is passed on."""
    install(tmp_path, package, f"share/{package}/launch/{file}.launch.py", STUB)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ['AMENT_PREFIX_PATH']}")
    arguments = (f"camera:={camera}", "params_file:={mine}", "namespace:=robot", "learning:=off", "serial_number:=7")
    with launched(domain, tmp_path, "camera.launch.py", *arguments) as launch:
        wait_until(lambda: "driver: " in launch.output or launch.process.poll() is not None, what="the driver")
        seen = dict(re.findall(r"driver: (\w+)=(.*?); ", launch.output))
        own = {"params_file": "driver.yaml", "use_sim_time": "false", "namespace": "none", "parent_frame": "base"}
        assert own | changed | {"serial_number": "7"} == {
            name: seen[name] for name in (*own, *changed, "serial_number")
        }
        wait_until(lambda: "active: " in launch.output, what=f"the node:\n{launch.output}")
        assert launch.interrupt() == 0, launch.output


@needs_launch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("camera.launch.py", "camera:=d435i_rgbd"), "needs the package realsense2_camera, which is not installed"),
        (("camera.launch.py", "camera:=kinect"), "camera is 'kinect', expected one of d435i_stereo"),
        (("nav2.launch.py", "camera:=d435i_rgbd"), "package 'robot_localization' not found"),
        (("online.launch.py", "rviz:=true"), "package 'rviz2' not found"),
        (("online.launch.py", "params_file:=none.yaml"), "params_file is 'none.yaml', expected a file, or one of"),
        (("online.launch.py", "mode:=lidar"), "mode is 'lidar', expected one of mono, stereo, rgbd"),
    ],
)
def test_what_cannot_be_started_starts_nothing(domain, tmp_path: Path, arguments, message):
    with launched(domain, tmp_path, *arguments) as launch:
        assert launch.process.wait(60) != 0 and message in launch.output, launch.output
        time.sleep(1.0)  # launch has ended; a node that it left behind would be starting


@needs_launch
def test_a_bag_is_played_to_the_node_and_replayed(domain, peer: Peer, tmp_path: Path):
    rendered = SimulatedSequence(frames=40, width=160, height=120, seed=3, texture_size=128, supersample=1)
    bag = write_recording(tmp_path / "scene.mcap", rendered)
    odometry = peer.collect(Odometry, "/played/odom")
    arguments = (
        "mode:=rgbd",
        "params_file:={mine}",
        "base_frame:=camera_optical",
        "learning:=off",
        "namespace:=played",
    )
    topics = ("image_topic:=/camera/image_raw", "depth_topic:=/camera/depth/image_raw", f"bag:={bag}")
    with launched(domain, tmp_path, "online.launch.py", *arguments, *topics) as launch:
        wait_until(lambda: launch.output.count("has finished cleanly") == 1, what=f"the player's end:\n{launch.output}")
        assert odometry and launch.interrupt() == 0, launch.output
    settings = tmp_path / "settings.yaml"
    settings.write_text("matcher.name: klt\n")
    arguments = (f"source:={bag}", f"out:={tmp_path / 'run'}", f"config:={settings}", "learning:=off")
    with launched(domain, tmp_path, "replay.launch.py", *arguments) as launch:
        assert launch.process.wait(120) == 0 and (tmp_path / "run" / "metrics.json").is_file(), launch.output


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(ROOT / "nowhere"))
    launch = load_launch("camera")
    for camera, packages in (
        ("oak_rgbd", "depthai_ros_driver_v3 or depthai_ros_driver"),
        ("zed_stereo", "zed_wrapper"),
    ):
        with pytest.raises(ValueError, match=f"camera:={camera} needs the package {packages}, .* driver:=false"):
            launch.find_driver(camera)
    assert {camera.split("_")[0] for camera in launch.ONLINE} == set(launch.DRIVERS)
