"""For `pip install .`: the Python package without its messages. colcon builds with CMakeLists.txt and does not read this file."""

from pathlib import Path

from setuptools import find_packages, setup


def read_requirements(name: str) -> list[str]:
    lines = (Path(__file__).parent / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# Python packages of a ROS 2 installation, not on PyPI under these names: with ROS sourced, pip sees them as installed.
ROS = ["rclpy", "cv_bridge", "sensor_msgs_py", "sensor_msgs", "nav_msgs", "geometry_msgs", "std_srvs", "diagnostic_msgs"]

setup(
    name="imatching_ros",
    version="0.1.0",
    description="Visual odometry whose feature matcher learns online from its own bundle adjustment, without ground truth",
    license="BSD-3-Clause",
    packages=find_packages(include=["imatching_ros", "imatching_ros.*"]),
    package_data={"imatching_ros": ["**/*.safetensors", "**/*.json", "**/*.md"]},
    python_requires=">=3.10,<3.15",
    install_requires=read_requirements("robot"),
    extras_require={
        "offline": read_requirements("offline"),  # all commands but `online`
        # python3-opencv of a ROS installation or the wheel: one of them, never both. OpenCV 5 breaks cv_bridge.
        "opencv": read_requirements("opencv"),
        "ros": [*ROS, "launch", "launch_ros"],
        "kornia": ["kornia>=0.9"],  # matchers xfeat, aliked and loftr; needs Python 3.11
        "onnx": ["onnx", "onnxscript", "onnxruntime"],  # `weights export FILE.onnx`
        "viewer": ["rerun-sdk>=0.24"],  # `replay --view` and `view`
        "test": ["pytest==8.3.*"],
        # What `bench ba` compares with. GTSAM asks for a newer pytest than "test"; with both, install it by pip --no-deps.
        "bench": ["gtsam>=4.3", "pyceres>=2.6", "pycolmap>=4"],
    },
    entry_points={"console_scripts": ["imatching_ros = imatching_ros.__main__:main"]},
)
