"""One HTML page about a run that needs no network; the figures also as PNG files and the numbers as JSON."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from .figures import draw_all, save_png, to_svg
from .run_reader import Run, read_run

CAPTIONS = {
    "trajectory": ("Trajectory", "Poses as they were published, never revised."),
    "ate": (
        "Absolute error over time",
        "Distance between estimated and true position after one alignment of the whole trajectory.",
    ),
    "rpe": ("Relative error", "Error of the motion from one frame to the next."),
    "matching": (
        "Matching accuracy, frozen vs. adapted weights",
        "Share of visible query points found within so many pixels; whiskers are 95 % bootstrap intervals over pairs.",
    ),
    "learning": (
        "Learning",
        "Steps on the residual of bundle adjustment, and validation of the candidate on windows recorded after its last step.",
    ),
    "residuals": ("Residuals", "Of the matches that support the poses."),
    "latency": ("Latency", "From the image to its pose, and until the next image could be taken."),
    "tracking": ("Tracking", "Matches of every frame and those that support its pose."),
}


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page (default: report.html in the folder), figures/*.png and report.json beside the run.

    Args:
        folder: what replay or the demo left behind.

    Returns:
        The page.

    Raises:
        SourceError: the folder holds no run.
    """
    run = read_run(folder)
    out = folder / "report.html" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    pngs = out.parent / "figures"
    pngs.mkdir(exist_ok=True)
    narrow = draw_all(run, narrow=True)
    svgs = {}
    for name, figure in draw_all(run).items():
        svgs[name] = (
            f'<div class="wide">{to_svg(figure, name)}</div><div class="narrow">{to_svg(narrow[name], f"{name}-narrow")}</div>'
        )
        save_png(figure, pngs / f"{name}.png")
    out.write_text(_page(run, svgs), encoding="utf-8")
    out.with_suffix(".json").write_text(
        json.dumps({"metrics": run.metrics, "matches": run.matches, "series": _series(run)}) + "\n"
    )
    return out


def _series(run: Run) -> dict[str, Any]:
    """What the figures are drawn from."""
    series: dict[str, Any] = {name: values.tolist() for name, values in run.frames.items()}
    # JSON has no NaN.
    series = {k: [None if v != v else v for v in values] for k, values in series.items()}
    if run.score is not None:
        series |= {
            "ate_time_s": run.seconds(run.score.estimate.stamps_ns).tolist(),
            "ate_m": run.score.error_m.tolist(),
            "rpe_trans_m": run.score.rpe_trans_m.tolist(),
            "rpe_rot_deg": run.score.rpe_rot_deg.tolist(),
            "estimate_aligned": run.score.estimate.T_WC.tolist(),
            "truth": run.score.truth.T_WC.tolist(),
        }
    return series


def _page(run: Run, svgs: dict[str, str]) -> str:
    m = run.metrics
    name = (m.get("source") or {}).get("name", run.folder.name)
    sections = []
    for key, (title, caption) in CAPTIONS.items():
        if key == "matching":
            caption += " " + _where(run)
        if key in svgs:
            sections.append(_section(title, caption, svgs[key]))
            if key == "matching":
                sections.append(_matches(run))
    if "matching" not in svgs and run.matches:
        sections.insert(3, _matches(run))
    sections.append(_weights(run))
    sections.append(_details(run))
    return PAGE_TEMPLATE.format(
        title=html.escape(f"{name}: visual odometry"),
        name=html.escape(str(name)),
        subtitle=html.escape(_subtitle(m)),
        tiles="".join(_tile(*tile) for tile in _tiles(run)),
        sections="\n".join(s for s in sections if s),
    )


def _subtitle(m: dict[str, Any]) -> str:
    source, learning = m.get("source") or {}, m.get("learning") or {}
    parts = [
        source.get("mode"),
        f"learning {learning.get('mode', 'off')}",
        f"matcher {(m.get('weights') or {}).get('matcher', '?')}",
        f"seed {m.get('seed')}",
    ]
    return ", ".join(str(p) for p in parts if p)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    m = run.metrics
    ate, latency, learning = m.get("ate"), m.get("latency_ms") or {}, m.get("learning") or {}
    tiles = [
        (
            "tracked",
            f"{m.get('tracked_frames', 0)} / {m.get('frames', 0)}",
            f"{m.get('lost_frames', 0)} lost, first pose at frame {m.get('initialized_at_frame')}, "
            f"{m.get('keyframes', 0)} keyframes",
        )
    ]
    if ate:
        percent = (
            f"{ate['percent_of_path']:.2f} % of {ate['path_length_m']:.1f} m"
            if ate.get("percent_of_path") is not None
            else "camera stood still"
        )
        tiles.append(("ATE", f"{ate['rmse']:.3g} m", f"{percent}; {ate['alignment']}, scale {ate['scale']:.3g}"))
        frame = (m.get("rpe") or {}).get("frame")
        if frame:
            tiles.append(
                ("RPE per frame", f"{100 * frame['trans_rmse_m']:.2g} cm", f"{frame['rot_rmse_deg']:.3f} degrees")
            )
    else:
        tiles.append(("ATE", "none", str(m.get("no_truth_because", "no truth"))))
    if latency.get("p95") is not None:
        tiles.append(
            (
                "latency p95",
                f"{latency['p95']:.0f} ms",
                f"p50 {latency['p50']:.0f}, p99 {latency['p99']:.0f}, max {latency['max']:.0f}",
            )
        )
    if learning.get("mode", "off") != "off":
        tiles.append(
            (
                "promotions",
                str(learning.get("promotions", 0)),
                f"{learning.get('rollbacks', 0)} rollbacks, {learning.get('steps', 0)} steps, "
                f"{learning.get('samples', 0)} windows",
            )
        )
    gain = _gain(run)
    if gain is not None:
        tiles.append(gain)
    return tiles


def _where(run: Run) -> str:
    return (
        "Learning never saw these images."
        if (run.matches or {}).get("unseen")
        else "On the recording that learning saw."
    )


def _gain(run: Run) -> tuple[str, str, str] | None:
    results = (run.matches or {}).get("results") or []
    first = {r["matcher"]: next(iter(r["gaps"].items())) for r in results}
    if "frozen" not in first or not first["frozen"][1].get("mma"):
        return None
    gap, frozen = first["frozen"]
    if "adapted" not in first or not first["adapted"][1].get("mma"):
        return f"within 1 px, gap {gap}", f"{100 * frozen['mma']['1']:.1f} %", "frozen weights; nothing was promoted"
    adapted = first["adapted"][1]
    return (
        f"within 1 px, gap {gap}",
        f"{100 * frozen['mma']['1']:.1f} → {100 * adapted['mma']['1']:.1f} %",
        f"frozen → adapted. {_where(run)}",
    )


def _matches(run: Run) -> str:
    images = []
    for file in (run.matches or {}).get("images", []):
        path = run.folder / file
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            label = path.stem.replace("_", ", ").replace("gap0", "gap ").replace("gap", "gap ").replace("  ", " ")
            images.append(
                f'<figure><img src="data:image/jpeg;base64,{data}" alt="{html.escape(label)}" loading="lazy">'
                f"<figcaption>{html.escape(label)}</figcaption></figure>"
            )
    if not images:
        return ""
    legend = (
        '<span class="key" style="--c:#0072b2">within 1 px</span> <span class="key" style="--c:#f0e442">within 3 px</span> '
        '<span class="key" style="--c:#d55e00">beyond</span> <span class="key" style="--c:#aaa">not known</span>'
    )
    return _section(
        "Matches",
        f"A pair from the middle of the recording. {legend}",
        f'<div class="images">{"".join(images)}</div>',
        raw=True,
    )


def _weights(run: Run) -> str:
    weights, learning = run.metrics.get("weights") or {}, run.metrics.get("learning") or {}
    rows = {
        **weights,
        **{
            k: learning.get(k)
            for k in (
                "mode",
                "state",
                "steps",
                "samples",
                "promotions",
                "rollbacks",
                "validation_before",
                "validation_after",
                "dropped",
                "busy_s",
            )
            if k in learning
        },
    }
    rejected = ", ".join(f"{reason} {count}" for reason, count in (learning.get("rejected") or {}).items())
    if rejected:
        rows["rejected"] = rejected
    if run.matches:
        rows["adapted weights file"] = run.matches.get("adapted") or "none"
    promotions = [
        [
            f"{run.seconds([e['stamp_ns']])[0]:.1f}",
            e["event"],
            e.get("version"),
            e.get("hash"),
            _number(e.get("before_px")),
            _number(e.get("after_px")),
            e.get("reason"),
        ]
        for e in run.events_of("promotion", "rollback")
    ]
    table = (
        _table(["time [s]", "what", "version", "hash", "before [px]", "after [px]", "why"], promotions)
        if promotions
        else ""
    )
    return _section("Weights and learning", "", _pairs(rows) + table)


def _details(run: Run) -> str:
    m = run.metrics
    source = {**(m.get("source") or {})}
    camera = source.pop("camera", {}) or {}
    warnings = [e.get("text", "") for e in run.events if e.get("event") == "warning"]
    parts = [("Recording", _pairs({**source, **camera})), ("Versions", _pairs(m.get("versions") or {}))]
    if warnings:
        parts.append(
            (
                f"Warnings ({len(warnings)})",
                "<ul>" + "".join(f"<li>{html.escape(w)}</li>" for w in warnings[:100]) + "</ul>",
            )
        )
    if run.config:
        parts.append(("Settings", f"<pre>{html.escape(run.config)}</pre>"))
    parts.append(
        (
            "All metrics",
            f"<pre>{html.escape(json.dumps({k: v for k, v in m.items() if k != 'residual_histogram'}, indent=2))}</pre>",
        )
    )
    inner = "".join(f"<details><summary>{title}</summary>{body}</details>" for title, body in parts)
    return _section("Details", "", inner)


def _section(title: str, caption: str, body: str, raw: bool = False) -> str:
    text = caption if raw else html.escape(caption)
    return f"<section><h2>{html.escape(title)}</h2>{f'<p class=caption>{text}</p>' if caption else ''}{body}</section>"


def _tile(label: str, value: str, note: str) -> str:
    return f'<div class="tile"><span>{html.escape(label)}</span><b>{html.escape(value)}</b><small>{html.escape(note)}</small></div>'


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(_number(v))}</td></tr>" for k, v in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(_number(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr>{cells}</table></div>'


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    return ", ".join(map(_number, value)) if isinstance(value, (list, tuple)) else str(value)


PAGE_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
:root {{ --bg:#f6f7f9; --card:#fff; --ink:#20262e; --soft:#5b6673; --grid:#d9dde2; --line:#e3e6ea; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --bg:#14171b; --card:#1d2126; --ink:#e4e8ec; --soft:#9aa5b1; --grid:#363c44; --line:#2c3238; }}
}}
* {{ box-sizing:border-box; }}
body {{ margin:0; background:var(--bg); color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }}
main {{ max-width:60rem; margin:0 auto; padding:1.5rem 1rem 3rem; }}
h1 {{ font-size:1.6rem; margin:0; overflow-wrap:anywhere; }} h2 {{ font-size:1.1rem; margin:0 0 .3rem; }}
.subtitle,.caption {{ color:var(--soft); margin:.1rem 0 .8rem; font-size:.92rem; }}
.tiles {{ display:grid; grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr)); gap:.7rem; margin:1.1rem 0; }}
.tile,section {{ background:var(--card); border:1px solid var(--line); border-radius:.7rem; padding:.9rem 1rem; }}
.tile span {{ color:var(--soft); font-size:.82rem; display:block; }}
.tile b {{ font-size:1.35rem; font-weight:650; font-variant-numeric:tabular-nums; }}
.tile small {{ display:block; color:var(--soft); line-height:1.35; }}
section {{ margin:0 0 1rem; }}
.wide svg,.narrow svg {{ display:block; width:100%; height:auto; }} svg text {{ font-family:inherit !important; }}
.narrow {{ display:none; }} @media (max-width:40rem) {{ .wide {{ display:none; }} .narrow {{ display:block; }} }}
.images {{ display:grid; gap:.9rem; }}
figure {{ margin:0; }} img {{ width:100%; height:auto; border-radius:.4rem; display:block; }}
figcaption {{ color:var(--soft); font-size:.85rem; }}
.key {{ white-space:nowrap; margin-right:.5rem; }}
.key::before {{ content:""; display:inline-block; width:.8em; height:.8em; border-radius:50%;
  background:var(--c); margin-right:.35em; border:1px solid var(--line); }}
.scroll {{ overflow-x:auto; }} table {{ border-collapse:collapse; font-size:.88rem; margin:.3rem 0; }}
th,td {{ text-align:left; padding:.25rem .8rem .25rem 0; border-bottom:1px solid var(--line); vertical-align:top; }}
th {{ color:var(--soft); font-weight:500; }}
details {{ border-top:1px solid var(--line); padding:.45rem 0; }}
summary {{ cursor:pointer; }} pre {{ overflow-x:auto; font-size:.8rem; line-height:1.4; }}
</style></head><body><main>
<h1>{name}</h1><p class="subtitle">{subtitle}</p>
<div class="tiles">{tiles}</div>
{sections}
</main></body></html>
"""
