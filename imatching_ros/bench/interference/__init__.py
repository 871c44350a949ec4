"""What learning in the background costs odometry."""
