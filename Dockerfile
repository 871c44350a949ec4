# The node on the official ROS image. Build: docker build --build-arg ROS_DISTRO=jazzy -t imatching_ros .
# Run: docker run --rm -it --net=host --ipc=host -v ~/.ros/imatching_ros:/root/.ros/imatching_ros imatching_ros ros2 launch imatching_ros \
#      online.launch.py image_topic:=/camera/image_raw
# The volume keeps what was learned. Its torch is for the CPU only.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
        python3-venv python3-opencv python3-yaml python3-scipy python3-matplotlib \
        ros-${ROS_DISTRO}-cv-bridge ros-${ROS_DISTRO}-sensor-msgs-py ros-${ROS_DISTRO}-diagnostic-msgs \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/src/imatching_ros
COPY . .
# scripts/environment sees the sourced ROS: virtual environment with the system's packages, then colcon.
ENV PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN bash -c 'source /opt/ros/${ROS_DISTRO}/setup.bash && source scripts/environment'

RUN printf '%s\n' '#!/bin/bash' 'source /opt/ros/${ROS_DISTRO}/setup.bash' 'cd /workspace/src/imatching_ros' \
        'source scripts/environment' 'exec "$@"' > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "imatching_ros", "online.launch.py"]
