"""GTSAM and Ceres on a mono WindowSnapshot, for comparison only: both hold the GIL while they solve.

Neither is a dependency of the package; `missing` returns those that cannot be imported.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.types import ObservationKind, WindowSnapshot
from ...core.errors import BundleError
from ...core.residuals import RobustKernel, squared_norm


@dataclass(frozen=True)
class OtherResult:
    """Where another solver arrived, measured by this project's own cost."""

    T_WC: Tensor  # (M, 7) float64
    points_W: Tensor  # (P, 3) float64
    cost: float  # robust cost by residuals.squared; inf when a landmark ended behind a camera
    build_ms: float
    solve_ms: float
    iterations: int


def missing() -> dict[str, str]:
    """{solver: how to install it} of those that are absent."""
    absent = {}
    if importlib.util.find_spec("gtsam") is None:
        absent["gtsam"] = "pip install gtsam"
    if importlib.util.find_spec("pycolmap") is None or importlib.util.find_spec("pyceres") is None:
        absent["ceres"] = "pip install pycolmap pyceres"
    return absent


def measure_cost(window: WindowSnapshot, T_WC: Tensor, points_W: Tensor, kernel: str, width: float) -> float:
    """The robust cost of a solution; inf when an observation has no reprojection."""
    s = squared_norm(window, T_WC, points_W)
    return float(0.5 * RobustKernel(kernel, width).cost(s).sum()) if bool(s.isfinite().all()) else float("inf")


def _sigmas(window: WindowSnapshot) -> list[float]:
    """The sigma of each keyframe's pixels."""
    sigma, kf = window.sigma[:, :2], window.kf_idx
    per_keyframe = torch.ones(len(window.T_WC), dtype=torch.float64)
    per_keyframe[kf] = sigma[:, 0]
    mixed = bool(((sigma - per_keyframe[kf][:, None]).abs() > 1e-9).any())
    if mixed or bool((window.kind != ObservationKind.MONO).any()):
        raise BundleError("the comparison takes mono windows with one sigma for all pixels of a keyframe")
    return per_keyframe.tolist()


class Ceres:
    """Ceres through pycolmap's bundle adjuster: its C++ reprojection cost, dense Schur complement, first pose fixed.

    The reconstruction is built once (in Python, not timed); every solve starts from the window and times the making of the
    Ceres problem and its solution.
    """

    def __init__(
        self,
        window: WindowSnapshot,
        kernel: str,
        width: float,
        threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        import pycolmap

        self.sigmas = _sigmas(window)
        self.window, self.kernel, self.width, self.threads, self.clock = window, kernel, width, threads, clock
        c = window.camera
        r = pycolmap.Reconstruction()
        # Pixels are measured in sigmas, so each sigma needs its camera.
        self.cameras = {sigma: n + 1 for n, sigma in enumerate(sorted(set(self.sigmas)))}
        for sigma, n in self.cameras.items():
            r.add_camera_with_trivial_rig(
                pycolmap.Camera(
                    model="PINHOLE",
                    width=c.width,
                    height=c.height,
                    camera_id=n,
                    params=[c.fx / sigma, c.fy / sigma, c.cx / sigma, c.cy / sigma],
                )
            )
        kf, pt = window.kf_idx.numpy(), window.pt_idx.numpy()
        uv = window.obs[:, :2].numpy() / np.array(self.sigmas)[kf][:, None]
        T_CW = geometry.inverse(window.T_WC).numpy()
        place = np.empty(len(kf), dtype=int)
        for k in range(len(T_CW)):
            mine = np.nonzero(kf == k)[0]
            place[mine] = np.arange(len(mine))
            image = pycolmap.Image(
                name=str(k), keypoints=uv[mine], camera_id=self.cameras[self.sigmas[k]], image_id=k + 1
            )
            r.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(T_CW[k, 3:]), T_CW[k, :3]))
        tracks: list[list] = [[] for _ in range(len(window.points_W))]
        for o in range(len(kf)):
            tracks[pt[o]].append(pycolmap.TrackElement(int(kf[o]) + 1, int(place[o])))
        self.ids = []
        for X, track in zip(window.points_W.numpy(), tracks, strict=True):
            self.ids.append(r.add_point3D(X, pycolmap.Track(track)) if track else None)
        self.reconstruction, self.start_T_CW = r, T_CW

    def solve(self, max_iterations: int = 100, tolerance: float = 1e-9) -> OtherResult:
        import pycolmap

        r, window = self.reconstruction, self.window
        for k, T in enumerate(self.start_T_CW):
            r.frame(k + 1).rig_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(T[3:]), T[:3])
        for i, X in zip(self.ids, window.points_W.numpy(), strict=True):
            if i is not None:
                r.point3D(i).xyz = X
        options, config = self._options(max_iterations, tolerance), self._config()
        begin = self.clock()
        adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, r)
        built = self.clock()
        summary = adjuster.solve()
        done = self.clock()
        summary = getattr(summary, "ceres_summary", summary)
        solved = [r.image(k + 1).cam_from_world() for k in range(len(self.start_T_CW))]
        T_CW = torch.tensor(np.stack([np.concatenate([T.translation, T.rotation.quat]) for T in solved]))
        start = window.points_W.numpy()
        X = torch.tensor(np.stack([start[n] if i is None else r.point3D(i).xyz for n, i in enumerate(self.ids)]))
        T_WC = geometry.inverse(T_CW)
        iterations = summary.num_successful_steps + summary.num_unsuccessful_steps
        cost = measure_cost(window, T_WC, X, self.kernel, self.width)
        return OtherResult(T_WC, X, cost, 1e3 * (built - begin), 1e3 * (done - built), iterations)

    def _options(self, max_iterations: int, tolerance: float) -> Any:
        import pyceres
        import pycolmap

        options = pycolmap.BundleAdjustmentOptions(
            print_summary=False, refine_focal_length=False, refine_extra_params=False, refine_sensor_from_rig=False
        )
        o = options.ceres  # a copy, as are its solver's options
        loss = {"none": "TRIVIAL", "huber": "HUBER", "cauchy": "CAUCHY"}[self.kernel]
        o.loss_function_type = getattr(pycolmap.LossFunctionType, loss)
        o.loss_function_scale = self.width
        o.auto_select_solver_type = False
        s = o.solver_options
        s.linear_solver_type = pyceres.LinearSolverType.DENSE_SCHUR
        s.dense_linear_algebra_library_type = pyceres.DenseLinearAlgebraLibraryType.EIGEN
        s.num_threads = self.threads
        s.max_num_iterations = max_iterations
        s.function_tolerance, s.gradient_tolerance, s.parameter_tolerance = tolerance, 0.0, 0.0
        o.solver_options = s
        options.ceres = o
        return options

    def _config(self) -> Any:
        """What is held constant: the cameras and the window's fixed poses."""
        import pycolmap

        config = pycolmap.BundleAdjustmentConfig()
        for k in range(len(self.start_T_CW)):
            config.add_image(k + 1)
        for n in self.cameras.values():
            config.set_constant_cam_intrinsics(n)
        for k in torch.nonzero(self.window.fixed).flatten().tolist():
            config.set_constant_rig_from_world_pose(k + 1)
        return config


class Gtsam:
    """GTSAM's Levenberg-Marquardt with its default elimination, first pose fixed; the graph is built in every solve."""

    def __init__(
        self, window: WindowSnapshot, kernel: str, width: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.sigmas = _sigmas(window)
        self.window, self.kernel, self.width, self.clock = window, kernel, width, clock

    def solve(self, max_iterations: int = 100, tolerance: float = 1e-9) -> OtherResult:
        import gtsam

        window, c = self.window, self.window.camera
        kf, pt, uv = window.kf_idx.tolist(), window.pt_idx.tolist(), window.obs[:, :2].numpy()
        matrices, X = geometry.to_matrix(window.T_WC).numpy(), window.points_W.numpy()
        begin = self.clock()
        noise = {sigma: gtsam.noiseModel.Isotropic.Sigma(2, sigma) for sigma in set(self.sigmas)}
        estimator = gtsam.noiseModel.mEstimator
        if self.kernel != "none":
            robust = {"huber": estimator.Huber, "cauchy": estimator.Cauchy}[self.kernel]
            noise = {
                sigma: gtsam.noiseModel.Robust.Create(robust.Create(self.width), plain)
                for sigma, plain in noise.items()
            }
        noise = [noise[sigma] for sigma in self.sigmas]
        K = gtsam.Cal3_S2(c.fx, c.fy, 0.0, c.cx, c.cy)
        graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        M = len(matrices)
        for o in range(len(kf)):
            graph.add(gtsam.GenericProjectionFactorCal3_S2(uv[o], noise[kf[o]], kf[o], M + pt[o], K))
        for k in range(M):
            values.insert(k, gtsam.Pose3(matrices[k]))
        for k in torch.nonzero(window.fixed).flatten().tolist():
            graph.add(gtsam.NonlinearEqualityPose3(k, gtsam.Pose3(matrices[k])))
        seen = sorted(set(pt))
        for p in seen:
            values.insert(M + p, X[p])
        params = gtsam.LevenbergMarquardtParams.CeresDefaults()
        params.setMaxIterations(max_iterations)
        params.setRelativeErrorTol(tolerance)
        params.setAbsoluteErrorTol(0.0)
        built = self.clock()
        optimizer = gtsam.LevenbergMarquardtOptimizer(graph, values, params)
        result = optimizer.optimize()
        done = self.clock()
        T_WC = geometry.from_matrix(torch.tensor(np.stack([result.atPose3(k).matrix() for k in range(M)])))
        points = X.copy()
        for p in seen:
            points[p] = result.atPoint3(M + p)
        points_W = torch.tensor(points)
        return OtherResult(
            T_WC,
            points_W,
            measure_cost(window, T_WC, points_W, self.kernel, self.width),
            1e3 * (built - begin),
            1e3 * (done - built),
            optimizer.iterations(),
        )
