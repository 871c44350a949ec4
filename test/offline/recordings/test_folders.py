"""The folder layouts, written small into a temporary folder."""

import json

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from imatching_ros.camera.model import Camera
from imatching_ros.core.errors import CameraError, SourceError
from imatching_ros.offline.recordings.base import SourceOptions, associate
from imatching_ros.offline.recordings import open_source
from imatching_ros.offline.recordings.imu import read_imu
from imatching_ros.offline.recordings.truth import from_matrices, write_tum

H, W, N = 48, 64, 5
CAMERA = dict(width=W, height=H, fx=50.0, fy=50.0, cx=31.5, cy=23.5)


def image(path, value=100, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((H, W), value, dtype))


def poses(count=N):
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, 0, 3] = 0.1 * np.arange(count)
    return T


def write_frames_csv(folder, stamps=None):
    stamps = [f"{k * 0.1:.9f}" for k in range(N)] if stamps is None else stamps
    lines = ["index,timestamp,left,right,depth"]
    for k, stamp in enumerate(stamps):
        image(folder / f"left/{k}.png", 10 * k)
        image(folder / f"right/{k}.png", 200)
        image(folder / f"depth/{k}.png", 3000, np.uint16)
        lines.append(f"{k},{stamp},left/{k}.png,right/{k}.png,depth/{k}.png")
    (folder / "frames.csv").write_text("\n".join(lines) + "\n")
    (folder / "camera.json").write_text(json.dumps({"cameras": [CAMERA], "baseline_m": 0.2, "depth_scale": 2000}))
    write_tum(folder / "groundtruth.txt", from_matrices(np.arange(len(stamps)) * 100_000_000, poses(len(stamps))))
    return folder


def test_frames_csv_in_every_mode(tmp_path):
    folder = write_frames_csv(tmp_path / "seq")
    source = open_source(folder)
    frames = list(source)
    assert (source.mode, source.length, [f.id for f in frames]) == ("rgbd", N, list(range(N)))
    assert frames[2].stamp_ns == 200_000_000 and frames[2].image[0, 0, 0] == 20
    assert frames[2].depth.unique().tolist() == [1.5]
    assert source.groundtruth().path_length_m == pytest.approx(0.4)
    stereo = list(open_source(folder, SourceOptions(mode="stereo")))
    assert stereo[0].right.unique().tolist() == [200] and stereo[0].depth is None and stereo[0].camera.baseline_m == 0.2
    mono = list(open_source(folder, SourceOptions(mode="mono")))
    assert mono[0].right is None and mono[0].depth is None


def test_iterating_again_starts_again(tmp_path):
    source = open_source(write_frames_csv(tmp_path))
    assert [f.stamp_ns for f in source] == [f.stamp_ns for f in source]


def test_stamps_that_go_back_are_skipped_with_a_warning(tmp_path):
    source = open_source(write_frames_csv(tmp_path, ["0.0", "0.1", "0.05", "0.1", "0.2"]))
    told = []
    source.on_warning = lambda stamp, text: told.append(stamp)
    assert [f.stamp_ns for f in source] == [0, 100_000_000, 200_000_000]
    assert told == [50_000_000, 100_000_000] and "before the last one" in source.warnings[0]


def test_a_corrupt_image_is_skipped_with_a_warning(tmp_path):
    folder = write_frames_csv(tmp_path)
    (folder / "left/2.png").write_bytes(b"broken")
    source = open_source(folder)
    assert [f.stamp_ns for f in source] == [0, 100_000_000, 300_000_000, 400_000_000]
    assert "2.png" in source.warnings[0]


def test_time_range(tmp_path):
    source = open_source(write_frames_csv(tmp_path), SourceOptions(start_s=0.1, duration_s=0.2))
    frames = list(source)
    assert (
        [f.stamp_ns for f in frames] == [100_000_000, 200_000_000, 300_000_000]
        and frames[0].id == 0
        and source.length == 3
    )
    with pytest.raises(SourceError, match="time range"):
        list(open_source(tmp_path, SourceOptions(start_s=9)))


def test_sizes_must_agree_with_the_camera(tmp_path):
    source = open_source(
        write_frames_csv(tmp_path), SourceOptions(mode="mono", camera=Camera(W, H + 1, 50, 50, 31, 23))
    )
    with pytest.raises(CameraError, match=f"{W} x {H}.*{W} x {H + 1}"):
        list(source)


def test_a_mode_that_cannot_be_served_is_refused(tmp_path):
    folder = write_frames_csv(tmp_path)
    text = (folder / "frames.csv").read_text().replace(",right,", ",other,")
    (folder / "frames.csv").write_text(text)
    with pytest.raises(SourceError, match="--mode stereo"):
        open_source(folder, SourceOptions(mode="stereo"))


def test_no_calibration_says_what_to_do(tmp_path):
    (write_frames_csv(tmp_path) / "camera.json").unlink()
    with pytest.raises(CameraError, match="--camera FILE"):
        open_source(tmp_path)


def test_tum(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg3_x"
    rgb, depth = ["# list"], []
    for k in range(N):
        image(folder / f"rgb/{k}.png")
        image(folder / f"depth/{k}.png", 5000, np.uint16)
        rgb.append(f"{k * 0.1:.6f} rgb/{k}.png")
        # The third depth image is 40 ms late: too far to belong.
        depth.append(f"{k * 0.1 + (0.04 if k == 2 else 0.01):.6f} depth/{k}.png")
    (folder / "rgb.txt").write_text("\n".join(rgb))
    (folder / "depth.txt").write_text("\n".join(depth))
    camera = tmp_path / "c.json"
    camera.write_text(json.dumps({"cameras": [CAMERA]}))
    assert open_source(folder).camera.fx == 535.4  # published for the series
    (folder / "camera.json").write_text(camera.read_text())
    frames = list(open_source(folder))
    assert [f.depth is not None for f in frames] == [True, True, False, True, True]
    assert frames[0].depth.unique().tolist() == [1.0]
    # A map in metres begins with a measured depth, so a recording does too.
    late = open_source(folder, SourceOptions(start_s=0.15))
    assert [(f.id, f.stamp_ns, f.depth is not None) for f in late] == [(0, 300_000_000, True), (1, 400_000_000, True)]
    assert len(late.warnings) == 1 and "no depth image" in late.warnings[0]
    assert [f.stamp_ns for f in open_source(folder, SourceOptions(mode="mono", start_s=0.15))][0] == 200_000_000


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", ", "])
def test_separators_and_comments_of_frames_csv(tmp_path, separator):
    write_frames_csv(tmp_path)
    text = (tmp_path / "frames.csv").read_text().replace(",", separator)
    (tmp_path / "frames.csv").write_text("# made by hand\n\n" + text + "\n# the end\n")
    assert len(list(open_source(tmp_path))) == N


def add_mark(path):
    """The byte order mark that Windows' editors write."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def test_byte_order_marks_in_every_layout(tmp_path):
    lists = write_frames_csv(tmp_path / "frames")
    tum = tmp_path / "rgbd_dataset_freiburg3_x"
    image(tum / "rgb/one image.png")
    (tum / "rgb.txt").write_text("1403636579763555584,rgb/one image.png")  # in ns, too
    (tum / "camera.json").write_text(json.dumps({"cameras": [CAMERA]}))
    euroc = write_euroc(tmp_path / "euroc", np.eye(4), np.eye(4))
    kitti = write_kitti(tmp_path / "kitti" / "04")
    for folder in (lists, tum, euroc, kitti):
        for file in folder.rglob("*"):
            if file.suffix in (".txt", ".csv", ".json", ".yaml"):
                add_mark(file)
        count = 1 if folder == tum else N
        assert len(list(open_source(folder, SourceOptions(mode="mono")))) == count
    assert list(open_source(tum))[0].stamp_ns == 1_403_636_579_763_555_584
    assert open_source(lists).groundtruth().path_length_m == pytest.approx(0.4)


def test_truth_can_be_left_aside(tmp_path):
    folder = write_frames_csv(tmp_path)
    (folder / "groundtruth.txt").write_text("not a trajectory")
    assert open_source(folder, SourceOptions(no_groundtruth=True)).groundtruth() is None


def test_unusable_truth_is_a_warning_of_the_recording(tmp_path):
    folder = write_frames_csv(tmp_path)
    with (folder / "groundtruth.txt").open("a") as file:
        file.write("9 0 0 0 0 0 0 0\n")
    source = open_source(folder)
    assert len(source.groundtruth()) == N and "1 of 6 poses" in source.warnings[0]


def write_kitti(folder, names=range(N)):
    for k, name in enumerate(names):
        image(folder / f"image_0/{name}.png", k)
    (folder / "times.txt").write_text("\n".join(f"{k * 0.1:e}" for k in range(len(names))))
    (folder / "calib.txt").write_text("P0: 50 0 31.5 0 0 50 23.5 0 0 0 1 0\n")
    return folder


def test_names_without_leading_zeros_are_in_the_order_of_their_numbers(tmp_path):
    write_kitti(tmp_path, range(12))
    assert [int(f.image[0, 0, 0]) for f in open_source(tmp_path)] == list(range(12))


def test_hidden_files_are_no_frames_and_no_bags(tmp_path):
    write_kitti(tmp_path)
    for name in ("image_0/._0.png", "image_0/.DS_Store", "._04.bag"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert len(list(open_source(tmp_path))) == N


def test_numbers_that_cannot_be_read_name_file_and_line(tmp_path):
    folder = write_kitti(tmp_path)
    (folder / "times.txt").write_text("0\n0.1\nx\n")
    with pytest.raises(SourceError, match="times.txt, line 3: 'x' is not a number"):
        open_source(folder)
    (write_kitti(tmp_path) / "calib.txt").write_text("P0: 50 0 x\n")
    with pytest.raises(CameraError, match="calib.txt, line 1: P0"):
        open_source(folder)
    write_frames_csv(tmp_path / "frames", ["0.0", "zero"])
    with pytest.raises(SourceError, match="frames.csv, line 3: 'zero' is not a number"):
        open_source(tmp_path / "frames")


def test_kitti(tmp_path):
    folder = tmp_path / "sequences" / "04"
    for k in range(N):
        image(folder / f"image_0/{k:06d}.png")
        image(folder / f"image_1/{k:06d}.png", 50)
    (folder / "times.txt").write_text("\n".join(f"{k * 0.1:e}" for k in range(N)))
    (folder / "calib.txt").write_text("P0: 50 0 31.5 0 0 50 23.5 0 0 0 1 0\nP1: 50 0 31.5 -25 0 50 23.5 0 0 0 1 0\n")
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses" / "04.txt").write_text("\n".join(" ".join(map(str, T[:3].ravel())) for T in poses()))
    source = open_source(folder)
    assert source.mode == "stereo" and source.camera.baseline_m == pytest.approx(0.5)
    assert len(list(source)) == N and source.groundtruth().stamps_ns[1] == 100_000_000


def write_euroc(root, T_B_right, T_B_left):
    for camera, T in (("cam0", T_B_left), ("cam1", T_B_right)):
        lines = ["#timestamp [ns],filename"]
        for k in range(N):
            image(root / f"mav0/{camera}/data/{k}.png")
            lines.append(f"{1_403_636_579_763_555_584 + k * 50_000_000},{k}.png")
        (root / f"mav0/{camera}/data.csv").write_text("\r\n".join(lines))
        (root / f"mav0/{camera}/sensor.yaml").write_text(
            yaml.safe_dump(
                dict(
                    T_BS=dict(cols=4, rows=4, data=T.ravel().tolist()),
                    resolution=[W, H],
                    intrinsics=[50, 50, 31.5, 23.5],
                    distortion_model="radial-tangential",
                    distortion_coefficients=[-0.2, 0.05, 0.001, 0.0],
                )
            )
        )
    return root


def test_euroc_is_rectified_for_stereo_only(tmp_path):
    left, right = np.eye(4), np.eye(4)
    left[0, 3], right[:2, 3] = 0.3, (0.41, 0.01)
    root = write_euroc(tmp_path, right, left)
    stereo = open_source(root)
    assert (
        stereo.mode == "stereo"
        and stereo.camera.baseline_m == pytest.approx(np.hypot(0.11, 0.01))
        and not stereo.camera.is_distorted
    )
    assert len(list(stereo)) == N
    lines = [f"{1_403_636_579_763_555_584 + k * 50_000_000},{k},0,0,1,0,0,0,0,0,0" for k in range(N)]
    (tmp_path / "elsewhere.csv").write_text("\n".join(lines))
    (root / "mav0/state_groundtruth_estimate0").mkdir()
    (root / "mav0/state_groundtruth_estimate0/data.csv").write_text("\n".join(lines))
    for mode in ("stereo", "mono"):
        own, given = (
            open_source(root, SourceOptions(mode, groundtruth=file)).groundtruth()
            for file in (None, tmp_path / "elsewhere.csv")
        )
        np.testing.assert_allclose(given.matrices(), own.matrices(), atol=1e-12)
        np.testing.assert_allclose(own.matrices()[0, :3, 3], [0.3, 0, 0], atol=1e-12)  # of the camera, not of the body
    mono = open_source(root / "mav0", SourceOptions(mode="mono"))
    assert mono.camera.is_distorted and list(mono)[0].stamp_ns == 1_403_636_579_763_555_584


def test_euroc_without_calibration_takes_a_given_one(tmp_path):
    root = write_euroc(tmp_path, np.eye(4), np.eye(4))
    for camera in ("cam0", "cam1"):
        (root / f"mav0/{camera}/sensor.yaml").unlink()
    with pytest.raises(CameraError, match="--camera FILE"):
        open_source(root)
    source = open_source(root, SourceOptions(camera=Camera(W, H, 50, 50, 31, 23)))
    assert source.mode == "mono" and len(list(source)) == N


def test_unknown_folders_list_what_was_looked_for(tmp_path):
    (tmp_path / "readme").write_text("")
    with pytest.raises(SourceError, match="Looked for.*rosbag2.*TUM.*EuRoC.*KITTI.*readme"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="unknown kind"):
        open_source(tmp_path / "readme")


def test_associate_takes_the_nearest_within_tolerance():
    assert associate(np.array([0, 10, 20, 100]), np.array([1, 18, 60]), 5).tolist() == [0, -1, 1, -1]
    assert associate(np.array([0]), np.array([], int), 5).tolist() == [-1]
    assert associate(np.array([0, 3]), np.array([2]), 5).tolist() == [0, 0]


@pytest.mark.data
@pytest.mark.parametrize(
    "name, mode, count",
    [
        ("kitti_mono_turn", "mono", 120),
        ("kitti_stereo_curve", "stereo", 40),
        ("tartanair_hospital", "rgbd", 120),
        ("tum_fr1_rpy", "rgbd", 60),
    ],
)
def test_real_sequences(data_folder, name, mode, count):
    source = open_source(data_folder / name)
    frames = list(source)
    assert (source.mode, len(frames), source.length) == (mode, count, count)
    assert source.groundtruth().at(np.array([f.stamp_ns for f in frames]))[1].all()


# -- gyroscopes, about the axes of the camera -----------------------------------------------------------------------------

T_BODY_IMU = np.eye(4)
T_BODY_IMU[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()


def write_imu(folder, T=T_BODY_IMU):
    (folder / "imu0").mkdir(parents=True)
    rows = ["#timestamp [ns],w_RS_S_x [rad s^-1],w_RS_S_y,w_RS_S_z,a_RS_S_x,a_RS_S_y,a_RS_S_z"]
    rows += [f"{stamp},{k},2,3,0,0,9.81" for k, stamp in enumerate((20, 10, 30))]
    (folder / "imu0" / "data.csv").write_text("\n".join(rows))
    if T is not None:
        (folder / "imu0" / "sensor.yaml").write_text(
            "%YAML:1.0\n" + yaml.safe_dump({"T_BS": {"data": T.ravel().tolist()}})
        )


def test_euroc_rates_are_those_of_the_left_camera(tmp_path):
    T_body_left = np.eye(4)
    T_body_left[:3, :3] = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    write_imu(write_euroc(tmp_path, np.eye(4), T_body_left) / "mav0")
    found = open_source(tmp_path, SourceOptions(mode="mono")).imu()
    assert found.stamps_ns.tolist() == [10, 20, 30]
    assert np.allclose(found.rates[1], T_body_left[:3, :3].T @ T_BODY_IMU[:3, :3] @ [0, 2, 3])


def test_a_rectified_camera_has_turned_axes(tmp_path):
    right, left = np.eye(4), np.eye(4)
    right[:2, 3] = 0.1, 0.01
    write_imu(write_euroc(tmp_path, right, left) / "mav0")
    mono, stereo = (open_source(tmp_path, SourceOptions(mode=mode)).imu() for mode in ("mono", "stereo"))
    assert np.allclose(np.linalg.norm(mono.rates, axis=1), np.linalg.norm(stereo.rates, axis=1))
    assert not np.allclose(mono.rates, stereo.rates, atol=1e-3)


def test_tum_vi_has_its_mounting_in_the_camera_chain(tmp_path):
    write_imu(tmp_path / "mav0", T=None)
    (tmp_path / "dso").mkdir()
    chain = {"cam0": {"T_cam_imu": np.linalg.inv(T_BODY_IMU).tolist()}}
    (tmp_path / "dso" / "camchain.yaml").write_text(yaml.safe_dump(chain))
    assert np.allclose(read_imu(tmp_path / "mav0", None).rates[1], T_BODY_IMU[:3, :3].T @ [0, 2, 3])


@pytest.mark.parametrize("T, complaint", [(None, "has no mounting"), (np.zeros((4, 4)), "is no rotation")])
def test_a_mounting_that_is_missing_or_wrong_is_named(tmp_path, T, complaint):
    write_imu(tmp_path, T)
    with pytest.raises(SourceError, match=complaint):
        read_imu(tmp_path, None)


def test_recordings_without_an_imu_have_none(tmp_path):
    folder = write_frames_csv(tmp_path)
    assert open_source(folder).imu() is None
    with pytest.raises(SourceError, match="is no bag and has no topic /imu"):
        open_source(folder, SourceOptions(imu_topic="/imu")).imu()
