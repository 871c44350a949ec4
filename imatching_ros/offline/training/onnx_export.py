"""A matcher as one ONNX network: two images and points of the first -> where they lie in the second."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from ...core.config import MatcherConfig
from ...core.errors import WeightsError
from ...matching import create_matcher
from ...matching.coarse_to_fine import CoarseToFine
from ...matching.weights import read_header


class _Pair(nn.Module):
    """The matcher with plain tensors at its doors."""

    def __init__(self, matcher: CoarseToFine) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, image_a: Tensor, uv_a: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (1, 1, H, W) float32 in 0..1, uv_a (N, 2) px -> uv_b (N, 2), score (N,), sigma_px (N,)."""
        (coarse_a, fine_a), (coarse_b, fine_b) = self.matcher.backbone(image_a), self.matcher.backbone(image_b)
        queries = self.matcher.describe_batch(coarse_a, fine_a, uv_a[None])
        # This door has no loop over chunks, which would fix the number of queries.
        found = self.matcher.match_batch(*queries, coarse_b, fine_b, differentiable=True)
        return found.uv[0], found.score[0], found.sigma_px[0]


def export_onnx(weights: Path, out: Path, height: int, width: int) -> str:
    """Writes the network of a weights file for images of one size and any number of queries, and checks it.

    Returns:
        What was written and how far onnxruntime is from torch.

    Raises:
        WeightsError: a matcher that is no network of ours, missing packages, or an export that computes something else.
    """
    header = read_header(weights)
    pair = _load_pair(weights, header.matcher)
    generator = torch.Generator().manual_seed(0)
    image_a, image_b = torch.rand(2, 1, 1, height, width, generator=generator)

    def points(count: int) -> Tensor:
        return torch.rand(count, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])

    program = _trace(pair, (image_a, points(100), image_b))
    program.model.metadata_props.update(
        {"matcher": header.matcher, "weights_version": str(header.version), "weights_hash": header.hash}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    program.save(out)
    uv_a = points(57)
    with torch.no_grad():
        expected = pair(image_a, uv_a, image_b)
    tolerance_px = 0.01  # float32 rounding in another order of operations; far below the sigma of a match
    error_px = _check(out, (image_a, uv_a, image_b), expected)
    if not error_px < tolerance_px:
        out.unlink()
        raise WeightsError(
            f"the exported network is {error_px:.3g} px from torch, more than {tolerance_px} px; nothing was written"
        )
    return (
        f"{out}: {header.matcher} version {header.version} for {width}x{height}; inputs image_a, uv_a, image_b; outputs "
        f"uv_b, score, sigma_px; at most {error_px:.2g} px from torch"
    )


def _load_pair(weights: Path, name: str) -> _Pair:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise WeightsError(f"ONNX export needs {', '.join(missing)}; run: pip install {' '.join(missing)}")
    matcher = create_matcher(MatcherConfig(name=name, weights=str(weights)))
    if not isinstance(matcher, CoarseToFine):
        raise WeightsError(
            f"{weights} is of the matcher '{name}', whose network cannot be exported; expected expectation or regression"
        )
    return _Pair(matcher).eval()


def _trace(pair: _Pair, inputs: tuple[Tensor, Tensor, Tensor]) -> ONNXProgram:
    # One query would be specialised to a constant; 4096 are more than odometry searches in an image.
    count = torch.export.Dim("queries", min=2, max=4096)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            pair,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=["image_a", "uv_a", "image_b"],
            output_names=["uv_b", "score", "sigma_px"],
            dynamic_shapes={"image_a": None, "uv_a": {0: count}, "image_b": None},
        )
    assert program is not None  # without `dynamo` there would be none
    return program


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's own deprecations, and its warnings of optional packages such as torchvision; errors still show."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check(path: Path, inputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference of coordinates between onnxruntime and torch, px; scores must agree too."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})
    score_error = float((torch.from_numpy(found[1]) - expected[1]).abs().max())
    return float((torch.from_numpy(found[0]) - expected[0]).abs().max()) if score_error < 1e-3 else float("inf")
