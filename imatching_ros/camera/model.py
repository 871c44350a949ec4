"""Pinhole camera with the distortion models of sensor_msgs/CameraInfo: plumb_bob, rational_polynomial, equidistant."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, array_module
from ..core.errors import CameraError

# Number of coefficients that each model accepts, in the order of OpenCV.
NUM_COEFFICIENTS = {"none": (0,), "plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}

# No lens sees more, and a matrix of ones or one in units of the image's width would be taken for a calibration.
WIDEST_PINHOLE_DEG, WIDEST_FISHEYE_DEG = 170.0, 360.0


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one camera; of a rectified stereo pair when `baseline_m` is given (right camera at +x)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "none"
    distortion: tuple[float, ...] = ()
    baseline_m: float | None = None
    readout_s: float = 0.0  # from the exposure of the first row to that of the last; 0: a global shutter

    def __post_init__(self) -> None:
        if self.model not in NUM_COEFFICIENTS:
            raise CameraError(f"unknown distortion model '{self.model}'; known are {', '.join(NUM_COEFFICIENTS)}")
        if len(self.distortion) not in NUM_COEFFICIENTS[self.model]:
            raise CameraError(
                f"distortion model '{self.model}' takes {' or '.join(map(str, NUM_COEFFICIENTS[self.model]))} coefficients, "
                f"{len(self.distortion)} were given"
            )
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not all(abs(x) < float("inf") for x in numbers):
            raise CameraError(f"camera calibration holds a number that is not finite: {numbers}")
        if self.fx <= 0 or self.fy <= 0:
            raise CameraError(
                f"focal length is {self.fx:g}, {self.fy:g}, expected both above zero: the camera is not calibrated; "
                "calibrate it (ros2 run camera_calibration cameracalibrator) or give a camera file"
            )
        if self.width <= 0 or self.height <= 0:
            raise CameraError(f"image size is {self.width} x {self.height}, expected both above zero")
        if self.baseline_m is not None and not 0 < self.baseline_m < float("inf"):
            raise CameraError(f"the stereo baseline is {self.baseline_m:g} m, expected metres above zero")
        if not 0 <= self.readout_s < 1:
            raise CameraError(f"the readout time is {self.readout_s:g} s, expected 0 (global shutter) to below 1")
        fisheye = self.model == "equidistant"
        widest_deg = WIDEST_FISHEYE_DEG if fisheye else WIDEST_PINHOLE_DEG
        if self.field_of_view_deg > widest_deg:
            raise CameraError(
                f"focal length is {self.fx:g}, {self.fy:g} px for an image of {self.width} x {self.height}: a "
                f"{'fisheye' if fisheye else 'pinhole'} camera that sees {self.field_of_view_deg:.1f} degrees is not calibrated (at "
                f"most {widest_deg:g}); expected K in pixels of this image: calibrate it (ros2 run camera_calibration "
                "cameracalibrator) or give a camera file"
            )

    @property
    def field_of_view_deg(self) -> float:
        """The wider of the horizontal and vertical angles of view, without the polynomial of the distortion."""
        half = max(self.width / (2 * self.fx), self.height / (2 * self.fy))
        return math.degrees(2 * (half if self.model == "equidistant" else math.atan(half)))

    def is_like(self, other: Camera) -> bool:
        """Whether both are of one size and model: a map goes on where a lens that focuses changes its numbers."""
        return (self.width, self.height, self.model) == (other.width, other.height, other.model)

    @property
    def is_distorted(self) -> bool:
        return self.model == "equidistant" or any(self.distortion)

    def project(self, points_C: Tensor) -> Tensor:
        """Points in the camera frame (..., 3) -> raw px (..., 2). Points with z <= 0 give no meaningful pixel."""
        return self._to_pixels(self._distort(points_C[..., :2] / points_C[..., 2:]))

    def distort(self, uv: Tensor) -> Tensor:
        """Ideal px (..., 2) -> raw px (..., 2)."""
        return self._to_pixels(self._distort(self._to_plane(uv))) if self.is_distorted else uv

    def undistort(self, uv: Tensor) -> Tensor:
        """Raw px (..., 2) -> ideal px (..., 2); differentiable. NaN where the model has no inverse (far outside the image).

        The inverse is found by Newton's method in numpy, whose small operations take a fifth of the time; with gradients one more step
        in torch makes the derivative exact (implicit function theorem), whatever the number of iterations.
        """
        if not self.is_distorted:
            return uv
        distorted = self._to_plane(uv)
        found = self._invert(distorted.detach().double().reshape(-1, 2).cpu().numpy().T)
        xy = torch.from_numpy(np.ascontiguousarray(found.T)).view(uv.shape).to(uv)
        if torch.is_grad_enabled() and uv.requires_grad:
            step = self._newton_step(*xy.unbind(-1), *distorted.unbind(-1))
            xy = xy - torch.stack(step, -1)
        return self._to_pixels(xy)

    def stretch(self, uv: Tensor) -> Tensor:
        """Ideal px (..., 2) -> (...,): how many ideal px one raw px is there, the geometric mean over directions; no gradient.

        Standard deviations of matches are of raw px, residuals of ideal ones.
        """
        if not self.is_distorted:
            return torch.ones_like(uv[..., 0])
        x, y = self._to_plane(uv.detach()).unbind(-1)
        return self._jacobian(*self._distort_around(x, y), x)[-1].abs().rsqrt()

    def carry(self, uv: Tensor, before: Camera) -> Tensor:
        """Ideal px (..., 2) of a camera -> those of this one for the same rays."""
        scale = uv.new_tensor([self.fx / before.fx, self.fy / before.fy])
        return (uv - uv.new_tensor([before.cx, before.cy])) * scale + uv.new_tensor([self.cx, self.cy])

    def scaled(self, factor: float) -> Camera:
        """The camera of the image resized by `factor`; pixel centres stay at integers."""
        return replace(
            self,
            width=round(self.width * factor),
            height=round(self.height * factor),
            fx=self.fx * factor,
            fy=self.fy * factor,
            cx=(self.cx + 0.5) * factor - 0.5,
            cy=(self.cy + 0.5) * factor - 0.5,
        )

    def _to_plane(self, uv: Tensor) -> Tensor:
        return (uv - uv.new_tensor([self.cx, self.cy])) / uv.new_tensor([self.fx, self.fy])

    def _to_pixels(self, xy: Tensor) -> Tensor:
        return xy * xy.new_tensor([self.fx, self.fy]) + xy.new_tensor([self.cx, self.cy])

    def _distort(self, xy: Tensor) -> Tensor:
        return torch.stack(self._distort_plane(*xy.unbind(-1)), -1) if self.is_distorted else xy

    def _distort_plane(self, x: Array, y: Array) -> tuple[Array, Array]:
        widest = _widest_radius(self.model, self.distortion)
        if widest == math.inf:
            return self._apply_model(x, y)
        # Past its turning point a polynomial folds what is outside the image back into it; go on outwards instead.
        xp = array_module(x)
        excess = xp.clip(xp.sqrt(x * x + y * y) / widest, 1.0, None)
        x, y = self._apply_model(x / excess, y / excess)
        return x * excess, y * excess

    def _apply_model(self, x: Array, y: Array) -> tuple[Array, Array]:
        r2 = x * x + y * y
        if self.model == "equidistant":
            xp = array_module(x)
            r = xp.sqrt(xp.clip(r2, 1e-16, None))
            theta = xp.arctan(r)
            t2 = theta * theta
            k1, k2, k3, k4 = self.distortion
            scale = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))) / r
            return x * scale, y * scale
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.distortion, 0.0, 0.0, 0.0, 0.0)[:8]
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        if k4 or k5 or k6:
            radial = radial / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        xy2 = 2 * x * y
        return (
            x * radial + p1 * xy2 + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + p2 * xy2,
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def _invert(self, distorted: np.ndarray) -> np.ndarray:
        """(2, N) whose `_distort` is given, on the plane z = 1; NaN where there is none."""
        u, v = distorted
        x, y = self._initial_guess(u, v)
        for _ in range(20):
            step_x, step_y = self._newton_step(x, y, u, v)
            x, y = x - step_x, y - step_y
            # Newton squares its error: after this step it is below 1e-13.
            if np.nan_to_num(np.abs(np.concatenate([step_x, step_y]))).max(initial=0.0) < 1e-7:
                break
        again_u, again_v = self._distort_plane(x, y)
        error_px = np.hypot(again_u - u, again_v - v) * max(self.fx, self.fy)
        found = (error_px < 1e-3) & (np.hypot(x, y) <= _widest_radius(self.model, self.distortion))
        return np.where(found, np.stack([x, y]), np.nan)

    def _initial_guess(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distorted point itself; for a fisheye, the point at that angle, else Newton starts too far away."""
        if self.model != "equidistant":
            return u, v
        theta = np.clip(np.hypot(u, v), 1e-8, 1.5)
        stretch = np.tan(theta) / theta
        return u * stretch, v * stretch

    def _newton_step(self, x: Array, y: Array, u: Array, v: Array) -> tuple[Array, Array]:
        """Solves J step = `_distort(x, y)` - (u, v) with its 2x2 Jacobian; x and y have no gradient."""
        around_u, around_v = self._distort_around(x, y)
        a, b, c, d, det = self._jacobian(around_u, around_v, x)
        eu, ev = around_u[4] - u, around_v[4] - v
        return (d * eu - b * ev) / det, (a * ev - c * eu) / det

    def _distort_around(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Each (5, ...): `_distort` a little to the right, left, below and above of points, and at them; one call for all, which are few."""
        step, xp = _difference(x), array_module(x)
        return self._distort_plane(xp.stack([x + step, x - step, x, x, x]), xp.stack([y, y, y + step, y - step, y]))

    @staticmethod
    def _jacobian(around_u: Array, around_v: Array, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Of `_distort`, by central differences: its rows (a, b) and (c, d), and the determinant."""
        width = 2 * _difference(x)
        a, c = (around_u[0] - around_u[1]) / width, (around_v[0] - around_v[1]) / width
        b, d = (around_u[2] - around_u[3]) / width, (around_v[2] - around_v[3]) / width
        return a, b, c, d, a * d - b * c


def _difference(x: Array) -> float:
    return 1e-6 if x.dtype in (torch.float64, np.float64) else 1e-3


@lru_cache(maxsize=64)
def _widest_radius(model: str, distortion: tuple[float, ...]) -> float:
    """The radius on the plane z = 1 up to which the distorted radius grows; inf if it always does."""
    if model == "equidistant":
        k1, k2, k3, k4 = distortion
        theta = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)[1:]
        t2 = theta * theta
        distorted = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        radius = torch.tan(theta)
    else:
        k1, k2, _, _, k3, k4, k5, k6 = (*distortion, *(0.0,) * 8)[:8]
        radius = torch.linspace(0, 20, 40001, dtype=torch.float64)[1:]  # 20: seen at 87 degrees from the axis
        r2 = radius * radius
        distorted = radius * (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    shrinks = (distorted[1:] <= distorted[:-1]).nonzero()
    return float(radius[int(shrinks[0])]) if len(shrinks) else math.inf
