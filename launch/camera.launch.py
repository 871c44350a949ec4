"""Starts the driver of a camera and visual odometry on it.

ros2 launch imatching_ros camera.launch.py camera:=d435i_stereo
ros2 launch imatching_ros camera.launch.py camera:=zed_stereo model:=zed2i
ros2 launch imatching_ros camera.launch.py camera:=oak_rgbd driver:=false     # the driver runs already
ros2 launch imatching_ros camera.launch.py camera:=d435i_rgbd params_file:=jetson.yaml learning:=off

Arguments of online.launch.py that are not given here are passed on to it, all others to the driver's launch file. A camera on a robot needs `base_frame:=base_link` and its mounting on TF.
Names are those of the drivers in 2026: realsense2_camera 4.5x, depthai_ros_driver 2 (Humble, Jazzy) or 3, zed_wrapper 5. Not tried on the hardware.
"""

# name: (default, what it is)
ARGUMENTS = {
    "camera": (None, "d435i_stereo, d435i_rgbd, oak_rgbd, zed_stereo or zed_rgbd"),
    "driver": ("true", "also start the camera's driver"),
    "model": ("zed2i", "camera_model of the ZED driver"),
}

# camera: arguments of online.launch.py. The node subscribes with BEST_EFFORT, which fits whatever a driver offers.
ONLINE = {
    # The dot pattern of the emitter moves with the camera and would be tracked.
    "d435i_stereo": {
        "mode": "stereo",
        "image_topic": "/camera/camera/infra1/image_rect_raw",
        "right_image_topic": "/camera/camera/infra2/image_rect_raw",
        "base_frame": "camera_link",
    },
    "d435i_rgbd": {
        "mode": "rgbd",
        "image_topic": "/camera/camera/color/image_raw",
        "depth_topic": "/camera/camera/aligned_depth_to_color/image_raw",
        "base_frame": "camera_link",
    },
    "oak_rgbd": {
        "mode": "rgbd",
        "image_topic": "/oak/rgb/image_raw",
        "depth_topic": "/oak/stereo/image_raw",
        "base_frame": "oak",
    },
    "zed_stereo": {
        "mode": "stereo",
        "image_topic": "/zed/zed_node/left/color/rect/image",
        "right_image_topic": "/zed/zed_node/right/color/rect/image",
        "base_frame": "zed_camera_link",
    },
    "zed_rgbd": {
        "mode": "rgbd",
        "image_topic": "/zed/zed_node/rgb/color/rect/image",
        "depth_topic": "/zed/zed_node/depth/depth_registered",
        "base_frame": "zed_camera_link",
    },
}

# camera: packages of its driver, the first that is installed. Version 3 of depthai has another name on Humble and Jazzy.
DRIVERS = {
    "d435i": ("realsense2_camera",),
    "oak": ("depthai_ros_driver_v3", "depthai_ros_driver"),
    "zed": ("zed_wrapper",),
}

REALSENSE = {
    "d435i_stereo": {
        "enable_infra1": True,
        "enable_infra2": True,
        "enable_color": False,
        "enable_depth": False,
        "depth_module.emitter_enabled": 0,
        "depth_module.infra_profile": "640x480x30",
    },
    "d435i_rgbd": {
        "enable_color": True,
        "enable_depth": True,
        "enable_sync": True,
        "align_depth.enable": True,
        "rgb_camera.color_profile": "640x480x30",
        "depth_module.depth_profile": "640x480x30",
    },
}


def find(package, file):
    """An installed launch file."""
    import os

    from ament_index_python.packages import get_package_share_directory
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    return PythonLaunchDescriptionSource(os.path.join(get_package_share_directory(package), "launch", file))


def include(source, arguments, hidden=()):
    """A launch file in a scope of its own, for arguments have no owner: what it sets stays there, and it does not see those that are `hidden`."""
    from launch.actions import GroupAction, IncludeLaunchDescription, UnsetLaunchConfiguration

    unset = [UnsetLaunchConfiguration(name) for name in hidden]
    return GroupAction([*unset, IncludeLaunchDescription(source, launch_arguments=arguments.items())])


def find_driver(camera):
    """The installed package of a camera's driver. Before anything is started: launch ends at a missing one, and leaves the node behind."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    packages = DRIVERS[camera.split("_")[0]]
    for package in packages:
        try:
            get_package_prefix(package)
        except PackageNotFoundError:
            continue
        return package
    raise ValueError(
        f"camera:={camera} needs the package {' or '.join(packages)}, which is not installed; driver:=false starts the node alone"
    )


def make_driver(camera, model, hidden):
    """The action that starts the driver. `hidden`: arguments that are those of the node, although a driver has some of the same name."""
    from launch_ros.actions import Node

    package = find_driver(camera)
    if package == "realsense2_camera":
        return Node(
            package=package,
            executable="realsense2_camera_node",
            namespace="camera",
            name="camera",
            output="screen",
            parameters=[REALSENSE[camera]],
        )
    if package == "zed_wrapper":
        # The driver's own odometry would publish another transform from odom.
        arguments = {"camera_model": model, "publish_tf": "false", "publish_map_tf": "false"}
        if camera == "zed_stereo":
            arguments["param_overrides"] = "video.publish_left_right:=true"
        return include(find(package, "zed_camera.launch.py"), arguments, hidden)
    file = "driver.launch.py" if package.endswith("_v3") else "camera.launch.py"
    # Its own parent_frame stays: that is the parent of the link that has the driver's name.
    return include(find(package, file), {"name": "oak"}, hidden)


def start(context):
    """The actions, once the arguments are known."""
    values = context.launch_configurations
    camera = values["camera"]
    if camera not in ONLINE:
        raise ValueError(f"camera is {camera!r}, expected one of {', '.join(ONLINE)}")
    given = {name: value for name, value in values.items() if name not in ARGUMENTS}
    online = find("imatching_ros", "online.launch.py")
    actions = [include(online, ONLINE[camera] | given)]
    if values["driver"].lower() == "true":
        own = [argument.name for argument in online.get_launch_description(context).get_launch_arguments()]
        actions.append(make_driver(camera, values["model"], [*ARGUMENTS, *own]))
    return actions


def generate_launch_description():
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchDescription

    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
