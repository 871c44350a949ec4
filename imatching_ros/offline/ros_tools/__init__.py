"""ROS programs around the node: demo, play, record, latency, reference."""
