"""Accuracy, faults and the time of every part of odometry."""
