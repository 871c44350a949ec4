"""Visual odometry: front end, local map, mapper, relocalization."""
