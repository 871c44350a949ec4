"""A feature matcher that learns on the robot, while it drives, without ground truth."""

# The built ROS messages live in a package of the same name inside the install space. When Python starts at the root of
# the source tree, this directory shadows it; extending the path lets `imatching_ros.msg` be found all the same.
__path__ = __import__("pkgutil").extend_path(__path__, __name__)

__version__ = "0.1.0"
