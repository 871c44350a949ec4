"""Runs visual odometry over a recording, every image of it, and writes the results to a folder.

ros2 launch imatching_ros replay.launch.py source:=my_bag out:=run groundtruth:=truth.txt
"""

# name: (default, what it is)
ARGUMENTS = {
    "source": ("", "rosbag2, ROS 1 bag, or a folder in the layout of TUM RGB-D, EuRoC, KITTI or frames.csv"),
    "out": ("run", "folder for the results"),
    "mode": ("", "mono, stereo or rgbd; empty: what the recording carries"),
    "groundtruth": ("", "true trajectory"),
    "external_odometry": ("", "external odometry: poses of the camera in a file"),
    "external_odometry_topic": ("", "the same from a topic of the bag"),
    "config": ("", "settings, YAML"),
    "learning": ("", "off, sync (deterministic) or thread"),
    "weights": ("", "a .safetensors file"),
    "device": ("", "cpu or cuda"),
    "seed": ("", "seed of everything random"),
}


def make_command(values):
    """{launch argument: text} -> arguments of `replay`."""
    options = [name for name in ARGUMENTS if name not in ("source", "out") and values[name] != ""]
    return [
        values["source"],
        "--out",
        values["out"],
        *(part for name in options for part in (f"--{name.replace('_', '-')}", values[name])),
    ]


def start(context):
    """The actions, once the arguments are known."""
    from launch.actions import ExecuteProcess
    from launch_ros.substitutions import ExecutableInPackage

    values = {name: context.launch_configurations[name] for name in ARGUMENTS}
    return [
        ExecuteProcess(cmd=[ExecutableInPackage("replay", "imatching_ros"), *make_command(values)], output="screen")
    ]


def generate_launch_description():
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchDescription

    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        if default or name != "source"
        else DeclareLaunchArgument(name, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
