"""Starts visual odometry on a camera.

ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw
ros2 launch imatching_ros online.launch.py mode:=stereo image_topic:=/left/image_rect right_image_topic:=/right/image_rect
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw odometry_topic:=/wheel_odometry odometry_use:=both
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw bag:=my_bag use_sim_time:=true rviz:=true
"""

# name: (default, what it is)
ARGUMENTS = {
    "mode": ("mono", "mono, stereo or rgbd"),
    "image_topic": ("image", "pictures; of the left camera in stereo"),
    "camera_info_topic": ("", "its CameraInfo; empty: camera_info beside the picture topic"),
    "right_image_topic": ("right/image", "pictures of the right camera in stereo"),
    "right_camera_info_topic": ("", "its CameraInfo; empty: camera_info beside the picture topic"),
    "depth_topic": ("depth/image", "depth pictures in rgbd, registered to the colour pictures"),
    "image_transport": ("raw", "raw or compressed"),
    "odometry_topic": ("odometry", "odometry from elsewhere (wheels, inertial), for odometry_use"),
    "odometry_use": ("", "off, prediction, scale or both"),
    "namespace": ("", "namespace of the node and of its topics"),
    "use_sim_time": ("false", "take the time from /clock"),
    "params_file": ("", "a parameter file; empty: the one shipped for the mode"),
    "weights": ("", "a .safetensors file, or 'default'"),
    "weights_profile": ("", "name of a site, whose weights are resumed and kept"),
    "learning": ("", "off, sync or thread"),
    "device": ("", "cpu or cuda"),
    "base_frame": ("", "frame of the robot (base_link)"),
    "odom_frame": ("", "frame of the published poses (odom)"),
    "publish_tf": ("", "publish odom -> base_link on /tf (true)"),
    "autostart": ("", "false leaves the node unconfigured, for a lifecycle manager (true)"),
    "rviz": ("false", "also start RViz"),
    "bag": ("", "also play this rosbag2"),
    "log_level": ("info", "debug, info, warn or error"),
}

# launch argument: parameter of the node, for the arguments that set one when they are not empty
PARAMETERS = {
    "mode": "mode",
    "image_transport": "image_transport",
    "odometry_use": "odometry_input.use",
    "weights": "matcher.weights",
    "weights_profile": "weights_profile",
    "learning": "learning.mode",
    "device": "matcher.device",
    "base_frame": "base_frame",
    "odom_frame": "odom_frame",
    "publish_tf": "publish_tf",
    "autostart": "autostart",
}


def make_parameters(values):
    """{launch argument: text} -> {parameter: value} of those that are given."""
    typed = {"true": True, "false": False}
    # The word off would be a boolean in the YAML file that launch writes, which the node reads back as off.
    return {parameter: typed.get(values[name], values[name]) for name, parameter in PARAMETERS.items() if values[name] != ""}


def make_remappings(values):
    """{launch argument: text} -> [(name in the node, topic)]."""
    stereo = values["mode"] == "stereo"
    pairs = [
        ("left/image" if stereo else "image", values["image_topic"]),
        ("left/camera_info" if stereo else "camera_info", values["camera_info_topic"]),
    ]
    if stereo:
        pairs += [("right/image", values["right_image_topic"]), ("right/camera_info", values["right_camera_info_topic"])]
    pairs += [("odometry", values["odometry_topic"])]
    if values["mode"] == "rgbd":
        pairs += [("depth/image", values["depth_topic"])]
    return [(name, topic) for name, topic in pairs if topic and topic != name]


def start(context):
    """The actions, once the arguments are known."""
    import os

    from ament_index_python.packages import get_package_share_directory
    from launch_ros.actions import Node

    values = {name: context.launch_configurations[name] for name in ARGUMENTS}
    share = get_package_share_directory("imatching_ros")
    sim_time = {"use_sim_time": values["use_sim_time"].lower() == "true"}
    params_file = values["params_file"] or os.path.join(share, "config", f"{values['mode']}.yaml")
    profile = os.path.join(share, "config", "fastdds.xml")
    # Large pictures are lost without it; whoever has a profile of his own keeps it.
    environment = {
        name: os.environ.get(name, profile) for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    }
    actions = [
        Node(
            package="imatching_ros",
            executable="online",
            name="imatching",
            namespace=values["namespace"],
            output="screen",
            parameters=[params_file, make_parameters(values), sim_time],
            remappings=make_remappings(values),
            arguments=["--ros-args", "--log-level", values["log_level"]],
            additional_env=environment,
        ),
    ]
    if values["bag"]:
        clock = ["--clock"] if sim_time["use_sim_time"] else []
        actions.append(
            Node(
                package="imatching_ros",
                executable="play",
                output="screen",
                arguments=[values["bag"], *clock],
                additional_env=environment,
            )
        )
    if values["rviz"].lower() == "true":
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=values["namespace"],
                parameters=[sim_time],
                arguments=["-d", os.path.join(share, "config", "imatching.rviz")],
            )
        )
    return actions


def generate_launch_description():
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchDescription

    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
