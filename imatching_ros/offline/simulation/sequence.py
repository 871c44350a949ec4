"""A rendered video: a scene, a path through it and a camera, as frames with exact truth."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...camera.model import Camera
from ...core.types import Frame
from ...core.errors import ConfigError
from .imu import SENSORS, ImuSamples, measure
from .kinds import KINDS, make_scene
from .renderer import render
from .scene import Scene
from .shifts import Shift, add_drops, find_shift, motion_blur, shaken, shifted_camera, take_image
from .textures import build_bank
from .trajectories import MOTIONS, make_trajectory


@dataclass(frozen=True)
class SimulatedSequence:
    """What decides a rendered video; the same values give the same images (on one device and torch version).

    Scene seeds of training start at `pairs.TRAINING_SCENES`: smaller ones are never seen in training.
    """

    kind: str = "room"
    frames: int = 100
    seed: int = 0
    width: int = 640
    height: int = 480
    rate_hz: float = 10.0
    shift: str = "none"
    motion: str = "tour"
    low_texture: bool | None = None
    path_seed: int | None = None  # another path through the same scene; `seed` if None
    # Length of the whole path, of which the frames show the beginning; that of the frames if None.
    path_s: float | None = None
    supersample: int = 2
    workers: int = 1  # frames that are rendered at the same time
    texture_size: int = 512  # texels; smaller ones are painted sooner and look coarser
    start_ns: int = 1_700_000_000_000_000_000  # stamp of the first frame
    camera: Camera | None = None  # a pinhole with a horizontal view of 64 degrees if None; the shift may zoom it
    device: str = "cpu"
    speed_mps: float | None = None
    baseline_m: float = 0.0  # above 0: a second camera so far to the right, rectified
    exposure_ms: float = 0.0  # during which the image is blurred by motion; 0: as the shift has it
    readout_ms: float = 0.0  # from the exposure of the first row to that of the last, the middle one at the stamp
    turn_deg_s: float = 120.0  # of the motion "sweep"
    imu: str = "none"  # sensor beside the camera, whose messages a recording holds
    # Standard deviation of the inverse depth that frames carry, 1/m: independent from pixel to pixel.
    depth_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frames", 1, 10**6),
            ("width", 16, 8192),
            ("height", 16, 8192),
            ("rate_hz", 0.01, 1000),
            ("supersample", 1, 4),
            ("workers", 1, 64),
            ("baseline_m", 0, 100),
            ("depth_noise", 0, 1),
            ("exposure_ms", 0, 1000 / max(self.rate_hz, 0.01)),
            ("readout_ms", 0, 1000 / max(self.rate_hz, 0.01)),
            ("turn_deg_s", 0, 720),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, expected {low} to {high}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}, expected 0 to {2**31 - 1}")
        find_shift(self.shift)
        if self.kind not in KINDS:
            raise ConfigError(f"unknown kind of scene '{self.kind}'; known are {', '.join(KINDS)}")
        if self.imu not in ("none", *SENSORS):
            raise ConfigError(f"unknown sensor '{self.imu}'; known are none, {', '.join(SENSORS)}")
        if self.motion not in MOTIONS:
            raise ConfigError(f"unknown motion '{self.motion}'; known are {', '.join(MOTIONS)}")

    @property
    def shifted_camera(self) -> Camera:
        """The camera of the frames."""
        camera = self.camera
        if camera is None:
            focal = 0.8 * self.width
            camera = Camera(self.width, self.height, focal, focal, (self.width - 1) / 2, (self.height - 1) / 2)
        if self.baseline_m > 0:
            camera = replace(camera, baseline_m=self.baseline_m)
        return shifted_camera(camera, find_shift(self.shift))

    def stamps_ns(self) -> list[int]:
        return [self.start_ns + round(i * 1e9 / self.rate_hz) for i in range(self.frames)]

    def scene(self) -> Scene:
        """The scene, exposed so that its images along the path have a middling brightness."""
        shift = find_shift(self.shift)
        bank = build_bank(self.seed, variants=2, size=self.texture_size, held_out=shift.held_out_textures)
        if shift.texture_contrast != 1:
            bank = bank.with_contrast(shift.texture_contrast)
        scene = make_scene(self.kind, self.seed, bank, self.low_texture)
        scene = scene.with_values(gloss=scene.gloss.clamp_min(shift.gloss))
        if shift.haze > 0:
            distance = shift.haze_distance_m * (10 if self.kind == "outdoor" else 1)
            density = -np.log(1 - shift.haze) / distance
            scene = scene.with_values(fog_density=density, fog_colour=0.72)
        poses = self.trajectory(scene)[:: max(1, self.frames // 6)]
        K = self.shifted_camera
        probe, _ = render(scene, K.scaled(64 / K.width), poses, self.device, shadows=0)
        target = 0.45  # mean of full scale, as automatic exposure of cameras aims at; leaves room for lamps and windows
        return scene.with_values(exposure=float(np.clip(target / max(float(probe.mean()), 0.02), 0.4, 5.0)))

    def trajectory(self, scene: Scene, offset_s: float = 0.0) -> Tensor:
        """(frames, 7) float64 poses, at the stamps plus an offset."""
        return self.poses_at(scene, np.arange(self.frames) / self.rate_hz + offset_s)

    def row_trajectory(self, scene: Scene) -> Tensor:
        """(frames, height, 7) float64 poses from which the rows of the frames are exposed."""
        delay_s = (np.arange(self.height) / (self.height - 1) - 0.5) * self.readout_ms / 1e3
        stamps = np.arange(self.frames)[:, None] / self.rate_hz + delay_s
        return self.poses_at(scene, stamps.ravel()).view(self.frames, self.height, 7)

    def poses_at(self, scene: Scene, stamps_s: np.ndarray) -> Tensor:
        """(N, 7) float64 poses at times (N,) s after the first frame."""
        seed = self.seed if self.path_seed is None else self.path_seed
        path_s = self.frames / self.rate_hz if self.path_s is None else self.path_s
        return make_trajectory(scene, self.kind, path_s, stamps_s, seed, self.motion, self.speed_mps, self.turn_deg_s)

    def measure_imu(self) -> ImuSamples:
        """The messages of the sensor from the first frame to the last."""
        scene, duration_s = self.scene().to("cpu"), (self.frames - 1) / self.rate_hz

        def poses_at(times: np.ndarray) -> np.ndarray:
            return self.poses_at(scene, times).numpy()

        return measure(poses_at, duration_s, self.start_ns, SENSORS[self.imu], self.seed)

    def read(self) -> Iterator[tuple[Frame, Tensor]]:
        """Yields (frame with RGB image and depth, and a right image where there is a baseline, T_WC (7,) float64), on the CPU."""
        expose = _Exposure(self).expose
        if self.workers == 1:
            yield from map(expose, range(self.frames))
            return
        # Whole frames side by side with one torch thread each: threads within a frame would wait for each other most of the time.
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: deque[Future] = deque()
            try:
                for i in range(self.frames):
                    pending.append(pool.submit(expose, i))
                    if len(pending) > 2 * self.workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def measure_depth(self, depth: Tensor, seed: int) -> Tensor:
        """(H, W) depth as the sensor measures it; 0 stays unknown."""
        if self.depth_noise == 0:
            return depth
        noise = self.depth_noise * torch.randn(depth.shape, generator=torch.Generator().manual_seed(seed))
        return torch.where(depth > 0, depth / (1 + noise * depth).clamp_min(0.05), depth)


class _Exposure:
    """Exposes the frames of a sequence; each depends on its number alone, so several threads may do it."""

    def __init__(self, sequence: SimulatedSequence) -> None:
        self._sequence = s = sequence
        self._shift: Shift = find_shift(s.shift)
        if s.exposure_ms > 0:
            self._shift = replace(self._shift, shutter=s.exposure_ms / 1e3 * s.rate_hz)
        self._camera = s.shifted_camera
        self._scene = s.scene().to(s.device)
        at_cpu = self._scene.to("cpu")
        half_open = self._shift.shutter / 2 / s.rate_hz
        self._rows = s.row_trajectory(at_cpu).to(s.device) if s.readout_ms > 0 else None
        self._mid, self._opened, self._closed = (
            s.trajectory(at_cpu, t).to(s.device) for t in (0.0, -half_open, half_open)
        )
        rng = np.random.default_rng((s.seed, 31))
        self._drift = _wander(rng, s.frames, s.rate_hz)
        lamps = self._scene.light_colour.shape[1]
        self._lamps = np.stack([_wander(rng, s.frames, s.rate_hz) for _ in range(lamps)], 1)
        self._stamps = s.stamps_ns()
        self._beside = self._mid.new_tensor([s.baseline_m, 0, 0, 0, 0, 0, 1]) if s.baseline_m > 0 else None

    def expose(self, i: int) -> tuple[Frame, Tensor]:
        """Frame number i and its pose (7,)."""
        scene, noise = self._light(i), self._sequence.seed * 100_003 + i
        view, depth = self._take(scene, i, None, noise)
        right = self._take(scene, i, self._beside, noise + 50_000)[0] if self._beside is not None else None
        depth = self._sequence.measure_depth(depth, noise)
        return Frame(i, self._stamps[i], view, self._camera, depth, right), self._mid[i].cpu()

    def _light(self, i: int) -> Scene:
        """The scene as its lamps shine at frame i."""
        if self._shift.lamp_drift == 0:
            return self._scene
        factor = np.exp(self._shift.lamp_drift * self._lamps[i])
        factor = torch.as_tensor(factor, dtype=torch.float32, device=self._sequence.device)
        return self._scene.with_values(light_colour=self._scene.light_colour * factor[None, :, None])

    def _take(self, scene: Scene, i: int, T_offset: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        """Image and depth of a camera at `T_offset` (7,) beside the first one."""
        s, shift = self._sequence, self._shift
        shake = np.random.default_rng((s.seed, 37, i)).integers(2**31)
        first = shaken(self._opened[i], shift, -0.5, np.random.default_rng(shake))
        last = shaken(self._closed[i], shift, 0.5, np.random.default_rng(shake))
        middle = self._mid[i]
        if T_offset is not None:
            first, middle, last = (geometry.compose(T, T_offset) for T in (first, middle, last))
        exposed = middle if self._rows is None else self._rows[i]
        if self._rows is not None and T_offset is not None:
            exposed = geometry.compose(exposed, T_offset.expand_as(exposed))
        (image,), (depth,) = render(scene, self._camera, exposed[None], s.device, s.supersample)
        if shift.shutter > 0:
            image = motion_blur(image, depth, self._camera, first, middle, last)
        if shift.drops > 0:
            image = add_drops(image, shift.drops, s.seed)
        exposure = float(np.exp(shift.exposure_drift * self._drift[i]))
        return take_image(image, shift, exposure, i, seed).cpu(), depth.cpu()


def simulated_frames(
    kind: str = "room", frames: int = 100, seed: int = 0, size: tuple[int, int] = (480, 640), **options
) -> Iterator[tuple[Frame, Tensor]]:
    """Yields (Frame, T_WC (7,)) of `SimulatedSequence(kind, frames, seed, ...)`; size is (height, width)."""
    return SimulatedSequence(kind=kind, frames=frames, seed=seed, height=size[0], width=size[1], **options).read()


def _wander(rng: np.random.Generator, frames: int, rate_hz: float) -> np.ndarray:
    """(frames,) slow wandering about zero, of about unit deviation, within some seconds."""
    keep = np.exp(-1 / (3.0 * rate_hz))
    value, out = 0.0, []
    for shock in rng.normal(0, 1, frames):
        value = keep * value + np.sqrt(1 - keep**2) * shock
        out.append(value)
    return np.array(out)
