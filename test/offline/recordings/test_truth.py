"""Trajectory files."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from imatching_ros.core.errors import SourceError
from imatching_ros.offline.recordings.text_files import Row, read_stamps
from imatching_ros.offline.recordings.truth import (
    Trajectory,
    format_stamp,
    from_matrices,
    read_trajectory,
    write_tum,
)


def spiral(count=20, step_ns=100_000_000, start_ns=1_305_031_237_193_641_901):
    k = np.arange(count)
    rotation = Rotation.from_rotvec(np.stack([0.01 * k, 0.05 * k, -0.02 * k], 1)).as_quat()
    return Trajectory(
        start_ns + k * step_ns, np.concatenate([np.stack([np.cos(k / 5), np.sin(k / 5), 0.1 * k], 1), rotation], 1)
    )


def test_stamps_keep_every_nanosecond():
    row = Row(Path("rgb.txt"), 1, ["1305031237.193641901", "rgb/0.png"])
    assert read_stamps([row]).tolist() == [1_305_031_237_193_641_901]
    assert format_stamp(1_305_031_237_193_641_901) == "1305031237.193641901"


def test_tum_is_read_as_written(tmp_path):
    write_tum(tmp_path / "t.txt", spiral())
    back = read_trajectory(tmp_path / "t.txt")
    assert (back.stamps_ns == spiral().stamps_ns).all()
    np.testing.assert_allclose(back.T_WC, spiral().T_WC, atol=1e-8)


def test_euroc_has_nanoseconds_and_w_first(tmp_path):
    lines = ["#timestamp, p_RS_R_x [m], ..."]
    for stamp, p in zip(spiral().stamps_ns, spiral().T_WC):
        lines.append(",".join(map(str, [stamp, *p[:3], p[6], *p[3:6], 0.1, 0.2, 0.3])))
    (tmp_path / "data.csv").write_text("\n".join(lines))
    T_body_camera = np.eye(4)
    T_body_camera[:3] = np.array([[0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3]])
    back = read_trajectory(tmp_path / "data.csv", T_body_camera=T_body_camera)
    assert (back.stamps_ns == spiral().stamps_ns).all()
    np.testing.assert_allclose(back.matrices(), spiral().matrices() @ T_body_camera, atol=1e-9)
    with pytest.raises(SourceError, match="poses of the body"):
        read_trajectory(tmp_path / "data.csv")


def test_kitti_takes_the_frames_times(tmp_path):
    (tmp_path / "07.txt").write_text("\n".join(" ".join(map(str, T[:3].ravel())) for T in spiral().matrices()))
    back = read_trajectory(tmp_path / "07.txt", spiral().stamps_ns)
    np.testing.assert_allclose(back.matrices(), spiral().matrices(), atol=1e-9)
    with pytest.raises(SourceError, match="no times"):
        read_trajectory(tmp_path / "07.txt")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "no poses"),
        ("1 2 3\n", "3 columns"),
        ("0 0 0 0 0 0 0 0\n", "unit length"),
        ("0 nan 0 0 0 0 0 1\n", "not finite"),
        ("0 x 0 0 0 0 0 1\n", "bad.txt, line 1: 'x' is not a number"),
        ("# t\n\n0 0 0 0 0 0 0 1\n1 0 0\n", "line 4: 3 columns"),
        ("1e30 0 0 0 0 0 0 1\n", "line 1: .* is no time"),
        ("0;0,5;0;0;0;0;0;1\n", "'0,5' is not a number"),
    ],
)
def test_bad_files_are_named(tmp_path, text, complaint):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(SourceError, match=complaint):
        read_trajectory(tmp_path / "bad.txt")


def tum_text(stamps, separator=" "):
    return "\n".join(separator.join([str(s), str(k), "0", "0", "0", "0", "0", "1"]) for k, s in enumerate(stamps))


@pytest.mark.parametrize("unit_ns", [1, 10**3, 10**6, 10**9])
def test_units_of_stamps_show_in_their_magnitude(tmp_path, unit_ns):
    stamps_ns = 1_403_636_579_000_000_000 + np.arange(5) * 10**9
    (tmp_path / "t.txt").write_text(tum_text(stamps_ns // unit_ns))
    assert (read_trajectory(tmp_path / "t.txt").stamps_ns == stamps_ns).all()


@pytest.mark.parametrize("unit_ns", [1, 10**3, 10**6, 10**9])
def test_units_of_stamps_from_zero_show_in_the_frames_times(tmp_path, unit_ns):
    stamps_ns = np.arange(100) * 10**9
    (tmp_path / "t.txt").write_text(tum_text(stamps_ns // unit_ns))
    frames_ns = np.arange(20, 30) * 10**9 + 5_000_000
    assert (read_trajectory(tmp_path / "t.txt", frames_ns).stamps_ns == stamps_ns).all()


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";", "; ", " , "])
@pytest.mark.parametrize("header", ["", "# t x y\n", "% t\n// t\n", "time x y z qx qy qz qw\n", '"stamp","x"\n'])
def test_marks_comments_and_separators(tmp_path, header, separator):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + (header + tum_text([0.0, 0.1], separator)).encode())
    assert read_trajectory(tmp_path / "t.txt").stamps_ns.tolist() == [0, 100_000_000]


def test_unusable_poses_are_skipped_and_counted(tmp_path):
    bad = "\n3 nan 0 0 0 0 0 1\n4 0 0 0 0 0 0 0\n5 0 0 0 0 0 0 3\nnan 0 0 0 0 0 0 1\n6 9 0 0 0 0 0 1.01\n"
    (tmp_path / "t.txt").write_text(tum_text([0, 1]) + bad)
    told = []
    back = read_trajectory(tmp_path / "t.txt", warn=told.append)
    assert back.stamps_ns.tolist() == [0, 10**9, 6 * 10**9] and back.T_WC[2].tolist() == [9, 0, 0, 0, 0, 0, 1]
    assert len(told) == 1 and "4 of 7 poses" in told[0] and "t.txt" in told[0]


def test_unusable_matrices_are_skipped_with_their_frames(tmp_path):
    T = spiral(4).matrices()[:, :3].reshape(4, 12)
    T[1, 0], T[2] = np.nan, 0
    (tmp_path / "07.txt").write_text("\n".join(" ".join(map(str, row)) for row in T))
    assert (
        read_trajectory(tmp_path / "07.txt", spiral(4).stamps_ns).stamps_ns.tolist()
        == spiral(4).stamps_ns[[0, 3]].tolist()
    )


def test_poses_between_samples_and_outside():
    line = from_matrices(np.array([0, 100, 1_000_000_000]), np.stack([np.eye(4)] * 3))
    line.T_WC[:, 0] = [0, 1, 2]
    T, known = line.at(np.array([50, 100, 500_000_000, 2_000_000_000]), max_gap_ns=1000)
    assert known.tolist() == [True, True, False, False]
    np.testing.assert_allclose(T[:2, 0, 3], [0.5, 1])


def test_interpolated_rotation_is_half_way():
    truth = from_matrices(np.array([0, 100]), np.stack([np.eye(4), np.eye(4)]))
    truth.T_WC[1, 3:] = Rotation.from_rotvec([0, 0, 1.0]).as_quat()
    T, _ = truth.at(np.array([50]))
    np.testing.assert_allclose(Rotation.from_matrix(T[0, :3, :3]).as_rotvec(), [0, 0, 0.5], atol=1e-12)
