"""Recordings as frames: rosbags and data set folders, and rendered scenes in `simulation`."""
