"""An example for a robot under Nav2: a camera, visual odometry, a filter that fuses its twist, and Nav2's lifecycle manager for the node.

ros2 launch imatching_ros nav2.launch.py camera:=d435i_rgbd
ros2 launch imatching_ros nav2.launch.py camera:=d435i_rgbd driver:=false bond_timeout:=0.0     # without bondpy

The filter (robot_localization) publishes odom -> base_frame from the twist, for the pose drifts; wheels and an IMU are further inputs of yours.
Arguments of camera.launch.py and online.launch.py that are not given here are passed on. `namespace` is that of all three nodes; TF is common to all robots,
so that each needs frames of its own (`odom_frame`, `base_frame`).
"""

# name: (default, what it is)
ARGUMENTS = {
    "base_frame": ("base_link", "frame of the robot; the camera's mounting is on TF"),
    "bond_timeout": (
        "4.0",
        "s without a heartbeat after which the manager ends the node; 0.0 where bondpy is not installed",
    ),
}

# What the node publishes, and who gives odom -> base_frame and the transitions.
ONLINE = {"odom_topic": "visual_odometry", "publish_tf": "false", "autostart": "false"}

# Planar: x, y and yaw alone. The order is x y z, roll pitch yaw, their velocities, accelerations.
FILTER = {
    "frequency": 30.0,
    "two_d_mode": True,
    "odom0_config": [False] * 6 + [True, True, False] + [False, False, True] + [False] * 3,
}


def make_filter(values):
    """{launch argument: text} -> parameters of the filter. Its topic is relative, as that of the node is: both have the same namespace."""
    odom_frame = values.get("odom_frame") or "odom"
    frames = {"odom_frame": odom_frame, "world_frame": odom_frame, "base_link_frame": values["base_frame"]}
    return FILTER | frames | {"odom0": values.get("odom_topic") or ONLINE["odom_topic"]}


def start(context):
    """The actions, once the arguments are known."""
    import os

    from ament_index_python.packages import get_package_prefix, get_package_share_directory
    from launch.actions import GroupAction, IncludeLaunchDescription, UnsetLaunchConfiguration
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch_ros.actions import Node

    for package in ("robot_localization", "nav2_lifecycle_manager"):
        get_package_prefix(package)  # launch would end where it is missing, and leave the node behind
    values = dict(context.launch_configurations)
    camera = os.path.join(get_package_share_directory("imatching_ros"), "launch", "camera.launch.py")
    given = {name: value for name, value in values.items() if name != "bond_timeout"}
    namespace = values.get("namespace", "")
    manager = {
        "autostart": True,
        "node_names": ["imatching"],
        "bond_timeout": float(values["bond_timeout"]),
        "use_sim_time": values.get("use_sim_time", "").lower() == "true",
    }
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(camera), launch_arguments=(ONLINE | given).items())
    return [
        GroupAction([UnsetLaunchConfiguration("bond_timeout"), node]),  # in a scope of its own
        Node(
            package="robot_localization",
            executable="ekf_node",
            name="ekf_filter_node",
            namespace=namespace,
            output="screen",
            parameters=[make_filter(values) | {"use_sim_time": manager["use_sim_time"]}],
        ),
        Node(
            package="nav2_lifecycle_manager",
            executable="lifecycle_manager",
            name="lifecycle_manager_visual_odometry",
            namespace=namespace,
            output="screen",
            parameters=[manager],
        ),
    ]


def generate_launch_description():
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchDescription

    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
