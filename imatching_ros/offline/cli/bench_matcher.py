"""`bench matcher`: features of one image plus its queries into several keyframes, by every way to run the network.

All ways take turns in every round, so that a busy machine slows all of them alike: compare the ratios. Each is also scored on
views of photographs with known homographies, for a fast way that matches worse is none. "hot": whether new weights can be
taken over between two frames.

examples:
  python -m imatching_ros bench matcher
  python -m imatching_ros bench matcher --size 320x240 --rounds 50 --json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ...core.config import MatcherConfig
from ...core.errors import ConfigError, ImatchingError
from ...matching import create_matcher
from ...matching.coarse_to_fine import CoarseToFine
from ...matching.precision import cpu_has_bfloat16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench matcher`."""
    parser.add_argument("--matcher", default="expectation", metavar="NAME[:WEIGHTS]", help="expectation or regression")
    parser.add_argument(
        "--size", default="640x480,320x240", metavar="WxH,...", help="image sizes (default: %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument(
        "--targets", type=int, default=4, help="keyframes that the queries are looked up in (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of every way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


class _Engine(nn.Module):
    """Another runtime in the place of the backbone."""

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 1, H, W) -> coarse and fine map."""
        return self._run(image)


class _Batched:
    """The look-up that learning differentiates through, in one batch, without gradients: what odometry would do otherwise."""

    def __init__(self, matcher: CoarseToFine) -> None:
        self.matcher = matcher

    def __call__(self, queries, targets):
        with torch.no_grad():
            return self.matcher.match(queries, targets, differentiable=True)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    torch.set_num_threads(args.threads)
    try:
        sizes = [tuple(int(x) for x in size.split("x")) for size in args.size.split(",")]
        assert all(len(s) == 2 and min(s) >= 64 for s in sizes)
    except (ValueError, AssertionError):
        raise ConfigError(
            f"--size {args.size}: expected WIDTHxHEIGHT of at least 64, such as 640x480,320x240"
        ) from None
    if min(args.rounds, args.queries, args.targets, args.threads) < 1:
        raise ConfigError("--rounds, --queries, --targets and --threads must be at least 1")
    results = []
    for width, height in sizes:
        results += bench(args, height, width)
    about = {
        "machine": platform.processor() or platform.machine(),
        "bfloat16": cpu_has_bfloat16(),
        "torch": torch.__version__,
        "threads": args.threads,
        "rounds": args.rounds,
        "queries": args.queries,
        "targets": args.targets,
    }
    print(json.dumps({**about, "results": results}, indent=2) if args.json else table(about, results))
    return 0


def bench(args: argparse.Namespace, height: int, width: int) -> list[dict[str, object]]:
    """One row per way to run the matcher on images of one size."""
    images, uv, truth = _views(args, height, width)
    ways = _ways(args.matcher, images[:1].float() / 255)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    found: dict[str, tuple] = {}
    for turn in range(args.rounds + 2):
        for name, (matcher, lookup, _) in ways.items():
            targets = [matcher.observe(p) for p in images[1:]] if turn == 0 else found[name][1]
            begin = time.perf_counter()
            features = matcher.observe(images[0])
            middle = time.perf_counter()
            with torch.no_grad():
                prediction = lookup(matcher.describe(features, uv), targets)
            end = time.perf_counter()
            found[name] = prediction, targets
            if turn >= 2:  # the first turns compile and warm up
                times[name].append((1e3 * (middle - begin), 1e3 * (end - middle)))
    rows: list[dict[str, object]] = []
    first = statistics.median(sum(t) for t in next(iter(times.values())))
    for name, taken in times.items():
        error = (found[name][0].uv - truth[0]).norm(dim=-1)[truth[1]]
        total = statistics.median(sum(t) for t in taken)
        rows.append(
            {
                "size": f"{width}x{height}",
                "way": name,
                "features_ms": round(statistics.median(t[0] for t in taken), 2),
                "match_ms": round(statistics.median(t[1] for t in taken), 2),
                "total_ms": round(total, 2),
                "fastest_ms": round(min(sum(t) for t in taken), 2),
                "ratio": round(total / first, 3),
                "hot": ways[name][2],
                **{f"mma_{px}px": round(float((error < px).float().mean()), 4) for px in (1, 3)},
            }
        )
    return rows


def _views(args: argparse.Namespace, height: int, width: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Images (1 + targets, 1, H, W) uint8, queries (N, 2) in the first, their places (T, N, 2) in the others and visible (T, N)."""
    import numpy as np

    from ..training.photographs import HomographyPairs, load_photographs, warp_homography
    from ..training.supervision import sample_queries

    photographs, _ = load_photographs([])
    if not photographs:
        raise ImatchingError(
            "bench matcher scores on photographs of scikit-image, which is not installed: pip install scikit-image"
        )
    pairs = HomographyPairs(photographs[:1], torch.device("cpu"))
    draw = [pairs.draw(1, (height, width), np.random.default_rng((args.seed, k))) for k in range(args.targets)]
    # Each draw brings an image of its own; the first one is kept, and seen again under every draw's homography.
    image = draw[0][0]
    views, places, visible = [image[0]], [], []
    uv = sample_queries(image, args.queries, torch.Generator().manual_seed(args.seed))
    corner = uv.new_tensor([width - 1.0, height - 1.0])
    for _, _, H_BA in draw:
        at = warp_homography(H_BA, uv)[0]
        places.append(at)
        visible.append(((at >= 0) & (at <= corner)).all(-1))
        views.append(_warp(image, H_BA[0], height, width))
    return (torch.stack(views) * 255).round().to(torch.uint8), uv[0], (torch.stack(places), torch.stack(visible))


def _warp(image: Tensor, H_BA: Tensor, height: int, width: int) -> Tensor:
    """The view (1, H, W) of an image (1, 1, H, W) under px of A -> px of B; grey where A does not reach."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mapped = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(H_BA).T
    at = mapped[..., :2] / mapped[..., 2:].clamp_min(1e-3)
    grid = 2 * at / at.new_tensor([width - 1, height - 1]) - 1
    return torch.nn.functional.grid_sample(image - 0.5, grid[None], align_corners=True)[0] + 0.5


def _ways(text: str, image: Tensor) -> dict[str, tuple[CoarseToFine, Callable, str]]:
    """Name -> (matcher, look-up, whether weights can be swapped between frames)."""
    name, _, weights = text.partition(":")

    def make(precision: str) -> CoarseToFine:
        matcher = create_matcher(MatcherConfig(name=name, weights=weights or "default", precision=precision))
        if not isinstance(matcher, CoarseToFine):
            raise ConfigError(f"--matcher {text}: expected expectation or regression")
        return matcher

    plain = make("float32").to(memory_format=torch.contiguous_format)
    ways: dict[str, tuple[CoarseToFine, Callable, str]] = {"eager float32, one batch": (plain, _Batched(plain), "yes")}
    for label, precision in (("channels-last float32", "float32"), ("channels-last bfloat16", "bfloat16")):
        if precision == "bfloat16" and not cpu_has_bfloat16():
            continue
        matcher = make(precision)
        ways[label] = matcher, matcher.estimate, "yes"
        compiled = make(precision)
        compiled.backbone = torch.compile(compiled.backbone)
        try:
            compiled.observe((image[0] * 255).to(torch.uint8))
            ways[f"torch.compile {precision}"] = compiled, compiled.estimate, "yes"
        except (
            Exception
        ) as error:  # no compiler on this machine, or one that the compiler cannot use: any of a dozen types
            print(f"torch.compile {precision} does not work here: {str(error).splitlines()[0]}", file=sys.stderr)
        if find_spec("openvino") is not None:
            engine = make(precision)
            engine.backbone = _Engine(_openvino(make("float32").backbone, image, precision))
            ways[f"OpenVINO {precision}"] = engine, engine.estimate, "rebuild"
    return ways


def _openvino(backbone: nn.Module, image: Tensor, precision: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(backbone.eval(), example_input=image, input=[tuple(image.shape)])
    hint = {"bfloat16": "bf16", "float32": "f32"}[precision]
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def infer(batch: Tensor) -> tuple[Tensor, Tensor]:
        result = request.infer([batch.float().numpy()])
        coarse, fine = (
            torch.from_numpy(result[k].copy()).contiguous(memory_format=torch.channels_last) for k in range(2)
        )
        return coarse, fine

    return infer


def table(about: dict[str, object], results: list[dict[str, object]]) -> str:
    """A Markdown table."""
    head = ("size", "way", "features ms", "match ms", "total ms", "fastest", "ratio", "MMA 1 px", "MMA 3 px", "hot")
    keys = ("size", "way", "features_ms", "match_ms", "total_ms", "fastest_ms", "ratio", "mma_1px", "mma_3px", "hot")
    rows = [tuple(str(row[k]) for k in keys) for row in results]
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)) + " |" for row in (head, *rows)]
    note = (
        f"{about['queries']} queries into {about['targets']} keyframes, {about['threads']} thread, median of {about['rounds']} "
        f"turns; torch {about['torch']}; bfloat16 in hardware: {'yes' if about['bfloat16'] else 'no'}"
    )
    return "\n".join([note, "", lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
