"""Windows on disk."""

import dataclasses

import pytest
import torch

from imatching_ros.camera.model import Camera
from imatching_ros.core.types import BAStatus
from imatching_ros.core.errors import SourceError
from imatching_ros.offline.training.windows import read_window, write_window


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
