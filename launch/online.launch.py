"""Starts visual odometry on a camera.

ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw
ros2 launch imatching_ros online.launch.py mode:=stereo image_topic:=/left/image_rect right_image_topic:=/right/image_rect
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw external_odometry_topic:=/odom external_odometry_use:=both
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw imu_topic:=/imu/data
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw params_file:=jetson.yaml
ros2 launch imatching_ros online.launch.py image_topic:=/camera/image_raw bag:=my_bag use_sim_time:=true rviz:=true

The shipped file of the mode is loaded first, then `params_file`, then the arguments.
"""

NAME = "imatching"
IMAGES = {"mono": "image", "stereo": "left/image", "rgbd": "image"}  # mode: the node's name for the images that lead

# name: (default, what it is)
ARGUMENTS = {
    "mode": ("", "mono, stereo or rgbd (as in params_file, else mono)"),
    "image_topic": ("", "images; of the left camera in stereo (image; left/image in stereo)"),
    "camera_info_topic": ("", "its CameraInfo; empty: camera_info beside the image topic"),
    "right_image_topic": ("right/image", "images of the right camera in stereo"),
    "right_camera_info_topic": ("", "its CameraInfo; empty: camera_info beside the image topic"),
    "depth_topic": ("depth/image", "depth images in rgbd, registered to the colour images"),
    "image_transport": ("", "raw or compressed (raw)"),
    "external_odometry_topic": ("external_odometry", "nav_msgs/Odometry of wheels or an inertial filter"),
    "external_odometry_use": ("", "off, prediction, scale or both"),
    "imu_topic": ("", "sensor_msgs/Imu of a gyroscope beside the camera"),
    "odom_topic": ("odom", "where this node's odometry is published; a base may publish its own as odom"),
    "namespace": ("", "namespace of the node and of its topics"),
    "use_sim_time": ("", "take the time from /clock (false)"),
    "params_file": ("", "a parameter file of your own, or the name of a shipped one such as jetson.yaml"),
    "weights": ("", "a .safetensors file, or 'default'"),
    "weights_profile": ("", "name of a site, whose weights are resumed and kept"),
    "learning": ("", "off, sync or thread"),
    "device": ("", "cpu or cuda"),
    "base_frame": ("", "frame of the robot (base_link)"),
    "odom_frame": ("", "frame of the published poses (odom)"),
    "publish_tf": ("", "publish odom -> base_link on /tf (true)"),
    "autostart": ("", "false leaves the node unconfigured, for a lifecycle manager (true)"),
    "respawn": ("false", "start the node again when it ends unexpectedly"),
    "rviz": ("false", "also start RViz"),
    "bag": ("", "also play this rosbag2"),
    "log_level": ("info", "debug, info, warn or error"),
}

# launch argument: parameter of the node, for the arguments that set one when they are not empty
PARAMETERS = {
    "mode": "mode",
    "camera_info_topic": "camera_info_topic",
    "right_camera_info_topic": "right_camera_info_topic",
    "image_transport": "image_transport",
    "external_odometry_use": "external_odometry.use",
    "imu_topic": "imu_topic",
    "weights": "matcher.weights",
    "weights_profile": "weights_profile",
    "learning": "learning.mode",
    "device": "matcher.device",
    "base_frame": "base_frame",
    "odom_frame": "odom_frame",
    "publish_tf": "publish_tf",
    "autostart": "autostart",
    "use_sim_time": "use_sim_time",
}


def find_file(name, folder):
    """The path of params_file: as given, else a shipped file of that name."""
    import os

    path = name if os.path.isfile(name) else os.path.join(folder, name)
    if not os.path.isfile(path):
        shipped = ", ".join(sorted(file for file in os.listdir(folder) if file.endswith(".yaml")))
        raise ValueError(f"params_file is {name!r}, expected a file, or one of the shipped {shipped}")
    return path


def read_parameters(tree):
    """Content of a parameter file -> {parameter: value} of this node."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict) and "ros__parameters" not in value:  # a namespace
            found |= read_parameters(value)
        elif isinstance(value, dict) and key.split("/")[-1] in ("**", "*", NAME):
            found |= value["ros__parameters"]
    return found


def make_parameters(values):
    """{launch argument: text} -> {parameter: value} of those that are given."""
    typed = {"true": True, "false": False}
    # The word off would be a boolean in the YAML file that launch writes, which the node reads back as off.
    return {
        parameter: typed.get(values[name].lower(), values[name])
        for name, parameter in PARAMETERS.items()
        if values[name] != ""
    }


def make_remappings(values, mode):
    """{launch argument: text} -> [(name in the node, topic)]."""
    pairs = [
        (IMAGES[mode], values["image_topic"]),
        ("external_odometry", values["external_odometry_topic"]),
        ("odom", values["odom_topic"]),
    ]
    if mode == "stereo":
        pairs += [("right/image", values["right_image_topic"])]
    if mode == "rgbd":
        pairs += [("depth/image", values["depth_topic"])]
    return [(name, topic) for name, topic in pairs if topic and topic != name]


def make_player_arguments(values, settings):
    """Arguments of `play`, which waits until the node has subscribed: loading weights takes longer than starting a player."""
    topic = values["image_topic"] or IMAGES[settings["mode"]]
    if not topic.startswith("/"):
        topic = "/".join(["", *filter(None, [values["namespace"].strip("/"), topic])])
    if settings.get("image_transport") == "compressed":
        topic += "/compressed"
    return [values["bag"], *(["--clock"] if settings.get("use_sim_time") is True else []), "--wait-for", topic]


def read_files(values, folder):
    """Paths of the parameter files that are given, and the parameters of this node in them."""
    import yaml

    files = [find_file(values["params_file"], folder)] if values["params_file"] else []
    settings = {"mode": "mono"}
    for file in files:
        with open(file) as stream:
            settings |= read_parameters(yaml.safe_load(stream) or {})
    return files, settings


def make_environment(folder):
    """Large images are lost without this profile; one that the user has set stays."""
    import os

    profile = os.path.join(folder, "fastdds.xml")
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    return {name: os.environ.get(name, profile) for name in names}


def make_rviz(values, settings, folder):
    """The action that starts RViz. Where it is missing launch would end, and leave the node behind."""
    import os

    from ament_index_python.packages import get_package_prefix
    from launch_ros.actions import Node

    get_package_prefix("rviz2")
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=values["namespace"],
        parameters=[{"use_sim_time": settings.get("use_sim_time") is True}],
        arguments=["-d", os.path.join(folder, "imatching.rviz")],
    )


def start(context):
    """The actions, once the arguments are known."""
    import os

    from ament_index_python.packages import get_package_share_directory
    from launch_ros.actions import Node

    values = {name: context.launch_configurations[name] for name in ARGUMENTS}
    config = os.path.join(get_package_share_directory("imatching_ros"), "config")
    given = make_parameters(values)
    files, settings = read_files(values, config)
    if values["bag"] and not values["weights_profile"]:
        # Weights learned from a recording are not resumed on the robot.
        given["weights_profile"] = settings.get("weights_profile") or "bag"
    settings |= given  # the parameters that the node will have, for what depends on them here
    if settings["mode"] not in IMAGES:
        raise ValueError(f"mode is {settings['mode']!r}, expected one of {', '.join(IMAGES)}")
    environment = make_environment(config)
    node = Node(
        package="imatching_ros",
        executable="online",
        name=NAME,
        namespace=values["namespace"],
        output="screen",
        respawn=values["respawn"].lower() == "true",
        respawn_delay=2.0,
        parameters=[os.path.join(config, f"{settings['mode']}.yaml"), *files, *([given] if given else [])],
        remappings=make_remappings(values, settings["mode"]),
        arguments=["--ros-args", "--log-level", values["log_level"]],
        additional_env=environment,
    )
    actions = [node]
    if values["bag"]:
        arguments = make_player_arguments(values, settings)
        program = {"package": "imatching_ros", "executable": "play", "output": "screen"}
        actions.append(Node(**program, arguments=arguments, additional_env=environment))
    if values["rviz"].lower() == "true":
        actions.append(make_rviz(values, settings, config))
    return actions


def generate_launch_description():
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchDescription

    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
