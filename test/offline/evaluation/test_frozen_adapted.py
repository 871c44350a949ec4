"""Frozen vs. adapted weights in a run's folder."""

import json

import cv2
import numpy as np

from imatching_ros.core.config import MatcherConfig
from imatching_ros.offline.evaluation.frozen_adapted import compare_frozen_adapted
from imatching_ros.matching.weights import DEFAULT_DIR
from imatching_ros.offline.recordings import open_source


def write_sliding_wall(folder):
    texture = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (24, 60), dtype=np.uint8), (480, 192), interpolation=cv2.INTER_CUBIC
    )
    lines, truth = ["index,timestamp,rgb,depth"], []
    for k in range(4):
        cv2.imwrite(str(folder / f"{k}.png"), texture[:120, 4 * k : 4 * k + 160])
        cv2.imwrite(str(folder / f"{k}_depth.png"), np.full((120, 160), 2000, np.uint16))
        lines.append(f"{k},{k * 0.1:.1f},{k}.png,{k}_depth.png")
        truth.append(f"{k * 0.1:.1f} {4 * k * 2 / 100} 0 0 0 0 0 1")
    (folder / "frames.csv").write_text("\n".join(lines))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    (folder / "camera.json").write_text(
        json.dumps({"cameras": [dict(width=160, height=120, fx=100, fy=100, cx=79.5, cy=59.5)]})
    )
    return open_source(folder)


def test_equal_weights_score_equally(tmp_path):
    """The shipped weights under another name: same queries, same answers; and good ones on a plain wall."""
    (tmp_path / "run").mkdir()
    (tmp_path / "wall").mkdir()
    source = write_sliding_wall(tmp_path / "wall")
    adapted = DEFAULT_DIR / "expectation.safetensors"
    data = compare_frozen_adapted(tmp_path / "run", source, MatcherConfig(), adapted, (1,), 3, unseen=True)
    frozen, same = (r["gaps"]["1"]["mma"] for r in data["results"])
    assert frozen == same and frozen["3"] > 0.6
    assert data == json.loads((tmp_path / "run/matches.json").read_text()) and data["unseen"]
    assert all((tmp_path / "run" / name).is_file() for name in data["images"]) and len(data["images"]) == 2
    assert len(compare_frozen_adapted(tmp_path / "run", source, MatcherConfig(), None, (1,), 3)["results"]) == 1
