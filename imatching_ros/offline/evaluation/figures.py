"""The figures of a report. Each is drawn once and saved twice: as PNG, and as SVG whose ink follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .run_reader import Run

# Okabe and Ito: distinguishable with colour blindness, legible on white and on dark grey.
BLUE, ORANGE, GREEN, RED, GREY = "#0f80c4", "#e69f00", "#009e73", "#d55e00", "#8a8f98"
INK, GRID = "#20262e", "#c3c8cf"  # replaced by CSS variables in the page
STYLE: dict[Any, Any] = {  # matplotlib's stub takes the keys only as literals
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
}


def draw_all(run: Run, narrow: bool = False) -> dict[str, Figure]:
    """{name: figure} of whatever the run holds data for; `narrow` stacks what stands side by side, for phones."""
    drawers: dict[str, Callable[[Run, bool], Figure | None]] = {
        "trajectory": _trajectory,
        "ate": _ate,
        "rpe": _rpe,
        "learning": _learning,
        "residuals": _residuals,
        "latency": _latency,
        "tracking": _tracking,
        "matching": _matching,
    }
    with matplotlib.rc_context(STYLE):
        return {name: figure for name, draw in drawers.items() if (figure := draw(run, narrow)) is not None}


def save_png(figure: Figure, path: Path) -> None:
    """On white, whatever the page looks like."""
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=130, facecolor="white")


def to_svg(figure: Figure, name: str) -> str:
    """Inline SVG: transparent, fluid width, ink by CSS variables; `name` keeps ids of several figures apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', svg, count=1)
    # matplotlib numbers its groups the same way in every figure.
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _figure(narrow: bool, rows: int = 1, columns: int = 1, height: float = 3.0, **options: Any) -> tuple[Figure, Any]:
    """A figure of that height (inches) with its axes; `narrow` turns one row of panels into one column."""
    if not narrow:
        figure = Figure(figsize=(7.6, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)
    if columns > 1:
        options = {k: v for k, v in options.items() if k not in ("width_ratios", "sharey")}
        rows, columns, height = columns, 1, columns * height * 0.85
    figure = Figure(figsize=(3.9, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _trajectory(run: Run, narrow: bool) -> Figure | None:
    trajectory = run.score.estimate if run.score is not None else run.estimate
    if trajectory is None:
        return None
    truth = run.score.truth.T_WC[:, :3] if run.score is not None else None
    estimate, stamps = trajectory.T_WC[:, :3], trajectory.stamps_ns
    shown = estimate if truth is None else truth
    if not len(shown):
        return None
    # Cameras move over the ground more than up and down: the axis of least extent is taken for the height.
    up = int(np.argmin(np.ptp(shown, axis=0)))
    a, b = (k for k in range(3) if k != up)
    if np.ptp(shown[:, b]) > np.ptp(shown[:, a]):
        a, b = b, a
    figure, (top, side) = _figure(narrow, 1, 2, 3.4, width_ratios=(3, 2))
    unit = "m" if run.score is not None or run.metrics.get("metric") else "map units"
    if truth is not None:
        top.plot(truth[:, a], truth[:, b], color=GREY, label="truth", linewidth=3.5, alpha=0.6)
        side.plot(run.seconds(stamps), truth[:, up], color=GREY, linewidth=3.5, alpha=0.6)
    top.plot(estimate[:, a], estimate[:, b], color=BLUE, label="estimate" + (" (aligned)" if truth is not None else ""))
    top.plot(*shown[0, [a, b]], "o", color=GREEN, markersize=6, label="start")
    side.plot(run.seconds(stamps), estimate[:, up], color=BLUE)
    top.set(xlabel=f"{'xyz'[a]} [{unit}]", ylabel=f"{'xyz'[b]} [{unit}]", title="top view")
    top.set_aspect("equal", "datalim")
    top.legend(fontsize=8.5)
    side.set(xlabel="time [s]", ylabel=f"{'xyz'[up]} [{unit}]", title="height (axis of least motion)")
    return figure


def _ate(run: Run, narrow: bool) -> Figure | None:
    if run.score is None:
        return None
    figure, axes = _figure(narrow, height=2.5)
    seconds = run.seconds(run.score.estimate.stamps_ns)
    axes.fill_between(seconds, run.score.error_m, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(seconds, run.score.error_m, color=BLUE)
    axes.axhline(
        run.score.ate["rmse"], color=ORANGE, linestyle="--", linewidth=1.2, label=f"rmse {run.score.ate['rmse']:.4g} m"
    )
    axes.set(xlabel="time [s]", ylabel="position error [m]", ylim=(0, None))
    axes.legend(fontsize=8.5)
    return figure


def _rpe(run: Run, narrow: bool) -> Figure | None:
    if run.score is None or not len(run.score.rpe_trans_m):
        return None
    figure, (left, right) = _figure(narrow, 1, 2, 2.5)
    seconds = run.seconds(run.score.estimate.stamps_ns)[1:]
    left.plot(seconds, run.score.rpe_trans_m * 100, color=BLUE)
    left.set(xlabel="time [s]", ylabel="cm", title="translation, frame to frame", ylim=(0, None))
    right.plot(seconds, run.score.rpe_rot_deg, color=GREEN)
    right.set(xlabel="time [s]", ylabel="degrees", title="rotation, frame to frame", ylim=(0, None))
    return figure


def _learning(run: Run, narrow: bool) -> Figure | None:
    steps, validations = run.events_of("learning_step"), run.events_of("validation")
    if not steps and not validations:
        return None
    figure, (top, bottom) = _figure(narrow, 2, 1, 4.4, sharex=True)
    if steps:
        with_residual = [e for e in steps if e.get("residual") is not None]
        seconds = run.seconds([e["stamp_ns"] for e in with_residual])
        residual = np.array([e["residual"] for e in with_residual], float)
        top.plot(seconds, residual, ".", color=GREY, markersize=3, alpha=0.5, label="one step")
        window = max(len(residual) // 20, 1)
        if len(residual) > 2 * window:
            smooth = np.convolve(residual, np.ones(window) / window, "valid")
            top.plot(seconds[window - 1 :], smooth, color=BLUE, label=f"mean of {window}")
        top.legend(fontsize=8.5)
    top.set(ylabel="residual of a step", title="training residual")
    for key, colour, label in (("before_px", GREY, "active weights"), ("after_px", BLUE, "candidate")):
        values = [(e["stamp_ns"], e[key]) for e in validations if e.get(key) is not None]
        if values:
            bottom.plot(
                run.seconds([v[0] for v in values]),
                [v[1] for v in values],
                "o-",
                color=colour,
                markersize=4,
                label=label,
            )
    bottom.set(xlabel="time [s]", ylabel="held-out residual [px]", title="validation on later windows")
    for kind, colour, name in (("promotion", GREEN, "promoted"), ("rollback", RED, "rolled back")):
        for k, event in enumerate(run.events_of(kind)):
            for axes in (top, bottom):
                axes.axvline(
                    run.seconds([event["stamp_ns"]])[0],
                    color=colour,
                    linewidth=1.4,
                    label=name if k == 0 and axes is bottom else None,
                )
    if bottom.get_legend_handles_labels()[0]:
        bottom.legend(fontsize=8.5)
    else:
        bottom.text(0.5, 0.5, "no validation was decided", transform=bottom.transAxes, ha="center", va="center")
    return figure


def _residuals(run: Run, narrow: bool) -> Figure | None:
    histogram = run.metrics.get("residual_histogram")
    if not histogram or not sum(histogram["counts"]):
        return None
    edges, counts = np.array(histogram["edges_px"]), np.array(histogram["counts"], float)
    figure, axes = _figure(narrow, height=2.5)
    axes.bar(edges, counts / counts.sum() * 100, width=edges[1] - edges[0], align="edge", color=BLUE)
    axes.set(
        xlabel=f"distance of an inlier from its reprojected landmark [px]; the last bar is {edges[-1]:g} and more",
        ylabel="share [%]",
    )
    return figure


def _latency(run: Run, narrow: bool) -> Figure | None:
    latency = run.frames.get("latency_ms")
    if latency is None or not len(latency):
        return None
    figure, (left, right) = _figure(narrow, 1, 2, 2.6, width_ratios=(3, 2))
    seconds = run.seconds(run.frames["stamp_ns"])
    if "processing_ms" in run.frames:
        left.plot(seconds, run.frames["processing_ms"], color=ORANGE, linewidth=0.9, label="with keyframe work")
    left.plot(seconds, latency, color=BLUE, linewidth=0.9, label="to the pose")
    left.set(xlabel="time [s]", ylabel="ms", ylim=(0, None))
    # Learning in line stops the next image for seconds, beside which poses would be a flat line.
    if "processing_ms" in run.frames and run.frames["processing_ms"].max() > 20 * max(np.median(latency), 1e-3):
        left.set_ylim(max(latency.min() / 2, 0.1), None)
        left.set_yscale("log")
    left.legend(fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    order = np.sort(latency)
    right.plot(order, np.arange(1, len(order) + 1) / len(order) * 100, color=BLUE)
    for share, colour in ((50, GREEN), (95, ORANGE), (99, RED)):
        value = np.percentile(latency, share)
        right.plot(value, share, "o", color=colour, markersize=5, label=f"p{share} {value:.0f} ms")
    right.legend(fontsize=8.5)
    right.set(xlabel="ms to the pose", ylabel="share of frames [%]")
    return figure


def _tracking(run: Run, narrow: bool) -> Figure | None:
    if "inliers" not in run.frames:
        return None
    figure, axes = _figure(narrow, height=2.5)
    seconds = run.seconds(run.frames["stamp_ns"])
    axes.plot(seconds, run.frames["matches"], color=GREY, label="matches")
    axes.plot(seconds, run.frames["inliers"], color=BLUE, label="inliers of the pose")
    step = np.median(np.diff(seconds)) if len(seconds) > 1 else 0.1
    for state, colour in (("lost", RED), ("unverified", ORANGE), ("uninitialized", GREY)):
        at = seconds[run.frames["state"] == state]
        for k, s in enumerate(at):
            axes.axvspan(
                s - step / 2, s + step / 2, color=colour, alpha=0.25, linewidth=0, label=state if k == 0 else None
            )
    axes.set(xlabel="time [s]", ylabel="points", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8.5, ncols=3 if narrow else 5, loc="outside upper center")
    return figure


def _matching(run: Run, narrow: bool) -> Figure | None:
    if not run.matches or not run.matches.get("results"):
        return None
    results = [r for r in run.matches["results"] if any(v.get("mma") for v in r["gaps"].values())]
    if not results:
        return None
    gaps = list(results[0]["gaps"])
    figure, all_axes = _figure(narrow, 1, len(gaps), 2.6, sharey=True, squeeze=False)
    for axes, gap in zip(all_axes.flat, gaps):
        for k, (result, colour) in enumerate(zip(results, (GREY, BLUE))):
            mma, interval = result["gaps"][gap]["mma"], result["gaps"][gap]["mma_interval"]
            if mma is None:
                continue
            x = np.arange(len(mma)) + (k - (len(results) - 1) / 2) * 0.36
            values = np.array(list(mma.values()))
            spread = np.abs(np.array(list(interval.values())).T - values) * 100
            axes.bar(
                x,
                values * 100,
                0.34,
                color=colour,
                label=result["matcher"],
                yerr=spread,
                error_kw=dict(ecolor=INK, elinewidth=0.9),
            )
        axes.set_xticks(range(3), ["1 px", "3 px", "5 px"])
        axes.set_title(f"{gap} frame{'s' if gap != '1' else ''} apart")
        axes.grid(axis="x", visible=False)
    all_axes[0][0].set_ylabel("right matches [%]")
    figure.legend(*all_axes[0][0].get_legend_handles_labels(), fontsize=8.5, loc="outside upper right", ncols=2)
    return figure
