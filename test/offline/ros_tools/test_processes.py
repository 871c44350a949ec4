"""Processes of the package on ROS domains of their own."""

from imatching_ros.offline.ros_tools.processes import free_domain


def test_programs_that_start_at_once_choose_different_domains():
    assert len({free_domain() for _ in range(20)}) > 5
