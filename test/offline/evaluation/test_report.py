"""The report of a run."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from imatching_ros.core.errors import SourceError
from imatching_ros.offline.evaluation.report import write_report
from imatching_ros.offline.evaluation.run_reader import read_run
from imatching_ros.offline.evaluation.run_writer import FRAME_COLUMNS
from imatching_ros.offline.recordings.truth import Trajectory, write_tum

STEP = 100_000_000


def write_run(folder, truth=True, learning=True):
    folder.mkdir(exist_ok=True)
    k = np.arange(40)
    T = np.tile([0, 0, 0, 0, 0, 0, 1.0], (40, 1))
    T[:, 0], T[:, 2] = np.sin(k / 10), 0.1 * k
    write_tum(folder / "trajectory.txt", Trajectory(k * STEP, T * [2, 2, 2, 1, 1, 1, 1]))
    if truth:
        write_tum(folder / "groundtruth.txt", Trajectory(k * STEP, T))
    rows = [
        ",".join(
            map(
                str,
                (
                    i,
                    i * STEP,
                    "lost" if i == 20 else "tracking",
                    50,
                    80,
                    "nan" if i == 20 else 0.4,
                    20 + i % 5,
                    30,
                    int(i % 4 == 0),
                    0,
                    1,
                ),
            )
        )
        for i in k
    ]
    (folder / "frames.csv").write_text("\n".join([",".join(FRAME_COLUMNS), *rows, "40,40"]))  # cut off in its last line
    events = []
    if learning:
        events = [dict(stamp_ns=i * STEP, event="learning_step", step=i, residual=1 / (i + 1)) for i in range(1, 30)]
        events += [
            dict(stamp_ns=30 * STEP, event="validation", before_px=1.0, after_px=0.8),
            dict(
                stamp_ns=30 * STEP,
                event="promotion",
                version=2,
                hash="abc",
                before_px=1.0,
                after_px=0.8,
                reason="better",
                step=29,
            ),
        ]
    (folder / "events.jsonl").write_text("\n".join([*map(json.dumps, events), '{"stamp']))
    (folder / "metrics.json").write_text(
        json.dumps(
            dict(
                frames=40,
                tracked_frames=39,
                lost_frames=1,
                keyframes=10,
                initialized_at_frame=0,
                metric=False,
                seed=7,
                latency_ms=dict(p50=22, p95=24, p99=24, max=24),
                source=dict(name="<b>bag</b>", mode="mono", path="/nowhere"),
                ate=None,
                no_truth_because="none given",
                learning=dict(mode="sync", steps=29, promotions=1, rollbacks=0, samples=9, rejected={"parallax": 3}),
                weights=dict(matcher="expectation", version=2, hash="abc"),
                residual_histogram=dict(edges_px=[0, 0.1, 0.2], counts=[5, 3, 1]),
            )
        )
    )
    (folder / "config.yaml").write_text("seed: 7\n")
    return folder


class Page(HTMLParser):
    """Counts tags and gathers what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.open = {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "data"):
                self.loads.append(value)
            if key == "id":
                self.ids.append(value)


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    out = write_report(write_run(tmp_path))
    text = out.read_text()
    page = Page(text)
    assert all(load.startswith(("#", "data:")) for load in page.loads), page.loads
    assert "@import" not in text and not re.search(r"url\(\s*['\"]?https?:", text)
    assert len(page.ids) == len(set(page.ids)), "figures share ids"
    assert page.tags["svg"] == 2 * 7  # trajectory, ate, rpe, learning, residuals, latency, tracking; wide and narrow
    for target in [load[1:] for load in page.loads if load.startswith("#")]:
        assert target in page.ids
    for words in ("39 / 40", "promotion", "parallax 3", "prefers-color-scheme: dark", "viewport", "var(--ink)"):
        assert words in text
    assert "<b>bag</b>" not in text and "&lt;b&gt;bag&lt;/b&gt;" in text


def test_figures_and_numbers_lie_beside_it(tmp_path):
    write_report(write_run(tmp_path))
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        "trajectory",
        "ate",
        "rpe",
        "learning",
        "residuals",
        "latency",
        "tracking",
    }
    series = json.loads((tmp_path / "report.json").read_text())["series"]
    assert len(series["ate_m"]) == 40 and max(series["ate_m"]) < 1e-6 and series["residual_px"][20] is None


def test_a_run_without_truth_or_learning_still_has_a_page(tmp_path):
    text = write_report(
        write_run(tmp_path, truth=False, learning=False), tmp_path / "elsewhere" / "page.html"
    ).read_text()
    assert "none given" in text and "Absolute error over time" not in text and "Trajectory" in text


def test_matches_are_embedded(tmp_path):
    folder = write_run(tmp_path)
    (folder / "matches").mkdir()
    (folder / "matches" / "gap01_frozen.jpg").write_bytes(b"\xff\xd8jpeg")
    mma = {"1": 0.3, "3": 0.5, "5": 0.6}
    gap = dict(mma=mma, mma_interval={k: [v - 0.1, v + 0.1] for k, v in mma.items()})
    (folder / "matches.json").write_text(
        json.dumps(
            dict(
                images=["matches/gap01_frozen.jpg"],
                adapted="current.safetensors",
                results=[
                    dict(matcher="frozen", gaps={"1": gap}),
                    dict(matcher="adapted", gaps={"1": {**gap, "mma": {k: v + 0.05 for k, v in mma.items()}}}),
                ],
            )
        )
    )
    text = write_report(folder).read_text()
    assert (
        "data:image/jpeg;base64,/9hqcGVn" in text
        and "30.0 → 35.0 %" in text
        and (folder / "figures/matching.png").is_file()
    )


def test_half_written_lines_are_left_out(tmp_path):
    run = read_run(write_run(tmp_path))
    assert len(run.frames["stamp_ns"]) == 40 and len(run.events) == 31


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="metrics.json"):
        write_report(tmp_path)
