"""Windows on disk, and which of them train and which validate."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from imatching_ros.camera.model import Camera
from imatching_ros.core.types import BAStatus
from imatching_ros.core.errors import SourceError
from imatching_ros.offline.training.windows import (
    Recording,
    last_training_frame,
    read_window,
    split_windows,
    training_windows_again,
    write_window,
)


def assert_same(a, b):
    """Bit for bit, also inside."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (
            a.dtype == b.dtype
            and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
            and torch.equal(a.isnan(), b.isnan())
        )
    elif dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture
def sample(make_sample):
    """With everything that a window of odometry may hold: distortion, numbers that are not known."""
    plain = make_sample()
    camera = Camera(96, 64, 80.0, 80.0, 47.5, 31.5, "plumb_bob", (0.1, -0.05, 0.001, 0.0), 0.12)
    residual = plain.result.residual_px.clone()
    residual[3] = torch.nan
    result = dataclasses.replace(
        plain.result, residual_px=residual, status=BAStatus.MAX_ITER, reason="for the test", covariance_newest=None
    )
    return dataclasses.replace(
        plain, window=dataclasses.replace(plain.window, camera=camera), result=result, tracking_healthy=False
    )


def test_what_is_written_is_read(sample, tmp_path):
    assert_same(sample, read_window(write_window(tmp_path, sample)))


def test_masks_are_written_too(sample, tmp_path):
    mask = torch.zeros(sample.images[0].shape[-2:], dtype=torch.bool)
    mask[:5] = True
    masked = dataclasses.replace(sample, masks=(mask, *[None] * (len(sample.images) - 1)))
    assert_same(masked, read_window(write_window(tmp_path, masked)))


def test_images_that_windows_share_are_kept_once(make_sample, tmp_path):
    first = make_sample(first_id=0)
    second = dataclasses.replace(
        first, keyframe_ids=tuple(k + 1 for k in first.keyframe_ids), images=(*first.images[1:], first.images[0])
    )
    paths = [write_window(tmp_path, s) for s in (first, second)]
    assert len(list((tmp_path / "images").iterdir())) == len(first.images) + 1
    for path, sample in zip(paths, (first, second)):
        assert_same(sample, read_window(path))


def test_damage_is_an_error_that_names_the_file(sample, tmp_path):
    path = write_window(tmp_path, sample)
    (tmp_path / "images" / "000002.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match="000002.png is missing or damaged"):
        read_window(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="cannot be read"):
        read_window(path)


def sliding(count, size=8):
    return Recording(Path("r"), "r", tuple(tuple(range(k, k + size)) for k in range(count)), 10 * count, {}, "")


@pytest.mark.parametrize("share", (0.1, 0.3, 0.6))
def test_no_keyframe_is_in_training_and_validation(share):
    recording = sliding(80)
    training, validation = split_windows(recording, share)
    assert training == list(range(round(80 * (1 - share))))
    trained = {k for w in training for k in recording.windows[w]}
    assert validation[0] == training[-1] + 8 and not trained & {k for w in validation for k in recording.windows[w]}
    assert np.diff(validation).tolist() == [2] * (len(validation) - 1)


def test_short_recordings_have_no_validation_window():
    assert split_windows(sliding(10), 0.3) == (list(range(7)), [])
    assert split_windows(sliding(0), 0.3) == ([], [])


def test_all_windows_may_be_for_training():
    assert split_windows(sliding(10), 0.0) == (list(range(10)), [])


def test_windows_of_later_epochs_end_where_those_of_the_first_do():
    recording = sliding(20)
    last = last_training_frame(recording, 0.3)
    assert last == recording.windows[13][-1] == 20
    assert last_training_frame(sliding(0), 0.3) == -1


def test_windows_of_later_epochs_leave_out_what_validates():
    first = Recording(Path("r"), "r", ((0, 1, 2), (1, 2, 3), (3, 4, 5), (5, 6, 7)), 8, {}, "")
    again = dataclasses.replace(first, windows=((0, 2, 3), (2, 3, 6), (2, 3, 4)))
    assert split_windows(first, 0.5) == ([0, 1], [3])
    assert training_windows_again(first, again, 0.5) == [0, 2]
