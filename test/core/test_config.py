"""Values as people write them."""

import pytest

from imatching_ros.core.config import Config
from imatching_ros.core.errors import ConfigError


def test_off_is_a_word_and_not_a_truth_value(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("learning: {mode: off}\n")  # False to YAML 1.1
    assert Config.from_file(path).learning.mode == Config().with_values({"learning.mode": "off"}).learning.mode == "off"
    with pytest.raises(ConfigError, match="learning.mode is True, expected str"):
        Config().with_values({"learning.mode": "on"})


def test_small_numbers_and_wrong_types():
    assert Config().with_values({"learning.learning_rate": "1e-4"}).learning.learning_rate == 1e-4
    with pytest.raises(ConfigError, match="odometry.window_keyframes is 'many', expected int"):
        Config().with_values({"odometry.window_keyframes": "many"})
    with pytest.raises(ConfigError, match="did you mean 'odometry.window_keyframes'"):
        Config().with_values({"odometry.window_keyframe": 5})
