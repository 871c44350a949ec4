"""Pinhole camera with the distortion models of sensor_msgs/CameraInfo: plumb_bob, rational_polynomial, equidistant."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

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

        The inverse is found by Newton's method without gradients; one more step with gradients makes the derivative
        exact (implicit function theorem), whatever the number of iterations.
        """
        if not self.is_distorted:
            return uv
        distorted = self._to_plane(uv)
        with torch.no_grad():
            xy = self._initial_guess(distorted.double())
            for _ in range(20):
                step = self._newton_step(xy, distorted.double())
                xy = xy - step
                # Newton squares its error: after this step it is below 1e-13.
                if float(step.abs().nan_to_num(0.0).max() if step.numel() else 0.0) < 1e-7:
                    break
            error_px = (self._distort(xy) - distorted.double()).norm(dim=-1) * max(self.fx, self.fy)
            found = (error_px < 1e-3) & (xy.norm(dim=-1) <= _widest_radius(self.model, self.distortion))
            xy = torch.where(found[..., None], xy, torch.nan).to(uv.dtype)
        return self._to_pixels(xy - self._newton_step(xy, distorted))

    def stretch(self, uv: Tensor) -> Tensor:
        """Ideal px (..., 2) -> (...,): how many ideal px one raw px is there, the geometric mean over directions; no gradient.

        Standard deviations of matches are of raw px, residuals of ideal ones.
        """
        if not self.is_distorted:
            return torch.ones_like(uv[..., 0])
        xy = self._to_plane(uv.detach())
        return self._jacobian(self._distort_around(xy), xy)[-1].abs().rsqrt()

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
        if not self.is_distorted:
            return xy
        widest = _widest_radius(self.model, self.distortion)
        if widest == math.inf:
            return self._apply_model(xy)
        # Past its turning point a polynomial folds what is outside the image back into it; go on outwards instead.
        excess = (xy.norm(dim=-1, keepdim=True) / widest).clamp_min(1)
        return self._apply_model(xy / excess) * excess

    def _apply_model(self, xy: Tensor) -> Tensor:
        x, y = xy.unbind(-1)
        r2 = x * x + y * y
        if self.model == "equidistant":
            r = r2.clamp_min(1e-16).sqrt()
            theta = torch.atan(r)
            t2 = theta * theta
            k1, k2, k3, k4 = self.distortion
            scale = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))) / r
            return xy * scale[..., None]
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.distortion, 0.0, 0.0, 0.0, 0.0)[:8]
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        return torch.stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
            ],
            -1,
        )

    def _initial_guess(self, distorted: Tensor) -> Tensor:
        """The distorted point itself; for a fisheye, the point at that angle, else Newton starts too far away."""
        if self.model != "equidistant":
            return distorted
        theta = distorted.norm(dim=-1, keepdim=True).clamp(1e-8, 1.5)
        return distorted * (torch.tan(theta) / theta)

    def _newton_step(self, xy: Tensor, distorted: Tensor) -> Tensor:
        """Solves J step = `_distort(xy)` - distorted with its 2x2 Jacobian; xy has no gradient."""
        around = self._distort_around(xy)
        a, b, c, d, det = self._jacobian(around, xy)
        ex, ey = (around[4] - distorted).unbind(-1)
        return torch.stack([d * ex - b * ey, a * ey - c * ex], -1) / det[..., None]

    def _distort_around(self, xy: Tensor) -> Tensor:
        """(5, ..., 2): `_distort` a little to the right, left, below and above of points, and at them; one call for all, which are few."""
        step = _difference(xy)
        dx, dy = xy.new_tensor([step, 0.0]), xy.new_tensor([0.0, step])
        return self._distort(torch.stack([xy + dx, xy - dx, xy + dy, xy - dy, xy]))

    @staticmethod
    def _jacobian(around: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of `_distort`, by central differences: its rows (a, b) and (c, d), and the determinant."""
        right, left, below, above, _ = around
        a, c = ((right - left) / (2 * _difference(xy))).unbind(-1)
        b, d = ((below - above) / (2 * _difference(xy))).unbind(-1)
        return a, b, c, d, a * d - b * c


def _difference(xy: Tensor) -> float:
    return 1e-6 if xy.dtype == torch.float64 else 1e-3


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
