"""The ray caster: exact depth, one pixel convention for image and depth, the same result however views are batched."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from imatching_ros.camera.model import Camera
from imatching_ros.offline.simulation.kinds import KINDS, make_scene
from imatching_ros.offline.simulation.pairs import look_along, matrix_to_quaternion, warp
from imatching_ros.offline.simulation.renderer import render, render_depth, render_views
from imatching_ros.offline.simulation.scene import SceneBuilder, Shape, stack
from imatching_ros.offline.simulation.textures import build_bank

CAMERA = Camera(160, 120, 130.0, 130.0, 79.5, 59.5)


@pytest.fixture(scope="module")
def bank():
    return build_bank(0, variants=1, size=256)


def pose(position, heading=0.0, pitch=0.0, roll=0.0):
    """(7,) camera at `position` that looks along `heading`."""
    R = look_along(np.array([heading]), np.array([pitch]), np.array([roll]))
    return torch.tensor(np.concatenate([position, matrix_to_quaternion(R)[0]]))


def view_of(scene, heading=0.3):
    """A pose in the middle of the space for cameras, looking along it."""
    return pose((scene.low[0] * 0.8 + scene.high[0] * 0.2).numpy(), heading, -0.05)


def builder(bank):
    return SceneBuilder(bank, np.random.default_rng(0))


def grid_of(camera, step=1):
    u, v = torch.meshgrid(torch.arange(0, camera.width, step), torch.arange(0, camera.height, step), indexing="xy")
    return torch.stack([u, v], -1).reshape(-1, 2).double()


def at(image, uv):
    """Bilinear values (N, C) of image (C, H, W) at raw px (N, 2)."""
    size = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float64)
    return grid_sample(image[None].double(), ((uv + 0.5) / size * 2 - 1)[None, None], align_corners=False)[0, :, 0].T


def test_each_row_of_a_rolling_shutter_is_seen_from_its_own_pose(bank):
    scene = make_scene("clutter", 3, bank)
    ends = torch.stack([view_of(scene, 0.3), view_of(scene, 0.38)])
    ends[1, :3] += torch.tensor([0.0, 0.004, 0.002])
    share = torch.linspace(0, 1, CAMERA.height, dtype=torch.float64)[:, None]
    rows = ends[:1] + (ends[1:] - ends[:1]) * share
    image, depth = render(scene, CAMERA, rows[None])
    for row in (0, 37, 119):
        expected, distance = render(scene, CAMERA, rows[row : row + 1])
        near = (depth[0, row] - distance[0, row]).abs() < 0.01
        assert near.float().mean() > 0.95  # but for the position, which a tile shares, at edges
        assert (image[0, :, row] - expected[0, :, row]).abs()[:, near].mean() < 0.01
    elsewhere, _ = render(scene, CAMERA, rows[60:61])
    assert (image[0, :, 0] - elsewhere[0, :, 0]).abs().mean() > 0.02


def test_depth_of_a_wall_is_its_distance_along_the_axis(bank):
    b = builder(bank)
    b.add(Shape.BOX, (5, 0, 0), (1, 100, 100), "noise")
    _, depth = render(b.build((0, 0, 0), (1, 1, 1)), CAMERA, pose((0.5, 0, 0))[None])
    assert torch.allclose(depth, torch.full_like(depth, 3.5), atol=1e-5)


@pytest.mark.parametrize(
    "model, distortion",
    [("none", ()), ("plumb_bob", (-0.25, 0.08, 0.001, -0.002)), ("equidistant", (0.01, 0.002, 0.0, 0.0))],
)
def test_depth_lies_on_the_ray_through_the_pixel_centre(bank, model, distortion):
    camera = Camera(160, 120, 130.0, 128.0, 70.0, 62.0, model, distortion)
    b = builder(bank)
    b.add(Shape.ELLIPSOID, (4, 0.2, -0.1), (1, 1, 1), "noise")
    _, depth = render(b.build((0, 0, 0), (1, 1, 1)), camera, pose((0, 0, 0))[None])
    uv = grid_of(camera)[depth.flatten() > 0]
    z = depth.flatten()[depth.flatten() > 0].double()
    ideal = camera.undistort(uv)
    x, y = (ideal[:, 0] - camera.cx) / camera.fx * z, (ideal[:, 1] - camera.cy) / camera.fy * z
    # Heading 0: camera z is world x, camera x is world -y, camera y is world -z.
    radius = torch.stack([z - 4, -x - 0.2, -y + 0.1], -1).norm(dim=-1)
    assert len(z) > 1000
    assert (radius - 1).abs().max() < 1e-4


def test_cylinder_has_a_side_and_a_flat_end(bank):
    b = builder(bank)
    b.add(Shape.CYLINDER, (4, 0, 0), (0.5, 0.5, 0.25), "noise")
    scene = b.build((0, 0, 0), (1, 1, 1))
    _, side = render(scene, CAMERA, pose((0, 0, 0))[None])
    assert side[0, 59:61, 79:81].mean() == pytest.approx(3.5, abs=1e-3)
    _, top = render(scene, CAMERA, pose((4, 0, 3), 0.0, -math.pi / 2 + 1e-6)[None])
    seen = top[top > 0]
    assert seen.median() == pytest.approx(2.75, abs=1e-3)


def test_sky_has_no_depth_and_nothing_is_hit_behind_the_camera(bank):
    b = builder(bank)
    b.add(Shape.BOX, (-5, 0, 0), (1, 1, 1), "noise")
    image, depth = render(b.build((0, 0, 0), (1, 1, 1)), CAMERA, pose((0, 0, 0))[None])
    assert (depth == 0).all()
    assert image.mean() > 0.3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_two_views_agree_below_a_tenth_of_a_pixel(bank, kind):
    """A pixel carried over by depth and pose shows the same; carried half a pixel off it does not. A disagreement
    between the rays of image and depth would show as an offset of the best alignment."""
    scene = make_scene(kind, 3, bank, low_texture=False)
    A = view_of(scene)
    step = 0.4 if kind == "outdoor" else 0.06
    B = A.clone()
    B[:3] += torch.tensor([step, step / 2, 0.0])
    B[3:] = pose((0, 0, 0), 0.34, -0.03, 0.02)[3:]
    image, depth = render(scene, CAMERA, torch.stack([A, B]), supersample=3)
    uv = grid_of(CAMERA, 1)
    K = torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]])
    uv_B, visible = warp(uv[None], depth[:1], K, A[None], B[None], depth[1:])
    inside = visible[0] & ((uv_B[0] > 3) & (uv_B[0] < torch.tensor([156.0, 116.0]))).all(-1)
    assert inside.float().mean() > 0.3
    uv, uv_B = uv[inside], uv_B[0][inside].double()
    grey = image.mean(1, keepdim=True)
    # One Gauss-Newton step for a common offset of all pixels, on robustly chosen pixels.
    h = 0.5
    error = (at(grey[1], uv_B) - at(grey[0], uv))[:, 0]
    J = torch.stack(
        [
            (at(grey[1], uv_B + d) - at(grey[1], uv_B - d))[:, 0] / (2 * h)
            for d in (torch.tensor([h, 0.0]), torch.tensor([0.0, h]))
        ],
        -1,
    )
    keep = error.abs() < 0.08
    assert keep.float().mean() > 0.9
    offset = torch.linalg.lstsq(J[keep], -error[keep, None]).solution[:, 0]
    assert offset.abs().max() < 0.05
    aside = (at(grey[1], uv_B + 0.5) - at(grey[0], uv))[:, 0]
    assert error.abs().mean() < 0.75 * aside.abs().mean()


def test_distortion_bends_the_image_as_the_camera_says(bank):
    scene = make_scene("room", 1, bank, low_texture=False)
    bent = Camera(160, 120, 130.0, 130.0, 79.5, 59.5, "plumb_bob", (-0.2, 0.05, 0.001, 0.001))
    T = view_of(scene)[None]
    straight, _ = render(scene, CAMERA, T, supersample=2)
    curved, _ = render(scene, bent, T, supersample=2)
    uv = grid_of(CAMERA)
    uv = uv[((uv > 25) & (uv < torch.tensor([134.0, 94.0]))).all(-1)]
    right = (at(curved[0], bent.distort(uv)) - at(straight[0], uv)).abs().mean()
    wrong = (at(curved[0], uv) - at(straight[0], uv)).abs().mean()
    assert right < 0.4 * wrong


def test_batches_equal_single_views(bank):
    scenes = [make_scene(kind, seed, bank) for kind, seed in (("room", 0), ("outdoor", 1))]
    poses = torch.stack([view_of(scenes[0]), view_of(scenes[1]), view_of(scenes[0], 2.0)])
    index = torch.tensor([0, 1, 0])
    K = torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]] * 3)
    image, depth = render_views(stack(scenes), (K, (120, 160)), poses, index, supersample=2)
    for i in range(3):
        alone, alone_depth = render(scenes[index[i]], CAMERA, poses[i : i + 1], supersample=2)
        assert torch.allclose(depth[i], alone_depth[0], atol=1e-4)
        assert ((image[i] - alone[0]).abs() > 1e-3).float().mean() < 1e-3
    assert torch.equal(render_depth(stack(scenes), (K, (120, 160)), poses, index), depth)


def test_the_same_seed_gives_the_same_image(bank):
    first, second, other = (make_scene("corridor", seed, build_bank(seed, variants=1, size=64)) for seed in (5, 5, 6))
    images = [render(scene, CAMERA, view_of(scene)[None])[0] for scene in (first, second, other)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_supersampling_leaves_depth_and_flat_parts_alone(bank):
    scene = make_scene("room", 4, bank)
    T = view_of(scene)[None]
    plain, depth = render(scene, CAMERA, T)
    smooth, depth_smooth = render(scene, CAMERA, T, supersample=3)
    assert torch.equal(depth, depth_smooth)
    share = (plain != smooth).any(1).float().mean()
    assert 0 < share < 0.5


def test_fine_texture_far_away_fades_instead_of_flickering(bank):
    """A chequered wall whose squares are far below a pixel becomes grey, not moire."""
    deviations = []
    for distance in (2.0, 900.0):
        b = builder(bank)
        b.add(Shape.BOX, (distance + 1, 0, 0), (1, 2000, 2000), "checker", tint=1.0)
        b.light((0, 0, 0), 0.0, 1.0)
        image, _ = render(b.build((0, 0, 0), (1, 1, 1), ambient=1.0, corner=0.0), CAMERA, pose((0, 0, 0))[None])
        deviations.append(float(image.std((2, 3)).mean()))
    assert deviations[0] > 0.05
    assert deviations[1] < 0.15 * deviations[0]


def test_a_lamp_behind_a_board_leaves_it_in_shadow(bank):
    def brightness(board):
        b = builder(bank)
        b.add(Shape.BOX, (5, 0, 0), (1, 50, 50), "plaster", tint=1.0)
        if board:
            b.add(Shape.BOX, (3.0, 0, 2.5), (0.5, 3, 0.05), "plaster")
        b.light((3.0, 0, 4), 1.0, 5.0)
        image, _ = render(b.build((0, 0, 0), (1, 1, 1), ambient=0.2, corner=0.0), CAMERA, pose((0, 0, 0))[None])
        return float(image[0, :, 59, 79].mean())

    assert brightness(board=True) < 0.7 * brightness(board=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_renders_what_the_cpu_renders(bank):
    scene = make_scene("room", 0, bank)
    T = view_of(scene)[None]
    image, depth = render(scene, CAMERA, T, "cpu", supersample=2)
    image_cuda, depth_cuda = render(scene, CAMERA, T, "cuda", supersample=2)
    assert ((depth - depth_cuda.cpu()).abs() > 1e-3).float().mean() < 1e-3
    assert ((image - image_cuda.cpu()).abs() > 4e-3).float().mean() < 2e-3
