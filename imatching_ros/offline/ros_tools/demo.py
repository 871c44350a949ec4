"""The whole loop in a few minutes: renders a scene, plays it to the running node over DDS, scores it and writes a report."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...core.errors import ImatchingError, SourceError
from ..simulation.recording import DEPTH_TOPIC, IMAGE_TOPIC, INFO_TOPIC
from .processes import free_domain, process, wait_for

MODE = "rgbd"
RATE_HZ = 6  # of the camera: one that a slow computer can follow while it learns
MOST_DROPPED = 0.1  # of the images; more say little about odometry and learning
MARK = ".imatching_demo"  # a file in every folder that a demonstration wrote, and the next may replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder for everything (default demo_output)"
    )
    parser.add_argument("--kind", default="clutter", help="scene: room, corridor, clutter, outdoor (default clutter)")
    parser.add_argument(
        "--shift",
        default="stripes",
        help="domain shift that the weights have to adapt to (default stripes: lamps that flicker under a rolling shutter)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=300,
        help=f"length at {RATE_HZ} Hz (default 300: long enough to validate a candidate)",
    )
    parser.add_argument(
        "--held-out", type=int, default=100, help="frames on another path, to score the weights (default 100)"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("W", "H"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--matcher", default="auto")


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration.

    Raises:
        SourceError: the folder is not an earlier demonstration's, or a step failed.
    """
    out = args.out.resolve()
    replace_folder(out)
    started = time.monotonic()
    scene, held_out = out / "scene.mcap", out / "held_out.mcap"
    print_step("1/5", "rendering a scene with known truth, and another path through it to score the weights")
    width, height = map(str, args.size)
    common = ["--kind", args.kind, "--shift", args.shift, "--width", width, "--height", height]
    common += ["--seed", str(args.seed), "--rate-hz", str(RATE_HZ)]
    command("simulate", str(scene), "--frames", str(args.frames), *common)
    command("simulate", str(held_out), "--frames", str(args.held_out), "--path-seed", str(args.seed + 1), *common)
    print_step("2/5", "playing it to the node over DDS")
    shift_ns, adapted = play(scene, out, args.matcher)
    print_step("3/5", "scoring the trajectory; odometry with frozen and adapted weights")
    metrics = write_run(scene, out, args, shift_ns)
    runs = {
        "learning": metrics,
        "frozen": replay_without_learning(scene, out / "frozen", args.matcher),
        "other path, frozen": replay_without_learning(held_out, out / "other_frozen", args.matcher),
        "other path, adapted": replay_without_learning(held_out, out / "other_adapted", args.matcher, adapted),
    }
    print_step("4/5", "matching with frozen and adapted weights on the other path")
    accuracy = score_matching(held_out, out, args.matcher, adapted)
    print_step("5/5", "writing the report")
    print(table(runs, accuracy))
    from ..evaluation.report import write_report

    write_report(out / "run", out / "report.html")
    print(f"\nreport: {out / 'report.html'} ({time.monotonic() - started:.0f} s in all)")
    return 0


def replace_folder(out: Path) -> None:
    """Empties the folder of an earlier demonstration; any other folder that holds something is an error."""
    if out.exists():
        if any(out.iterdir()) and not (out / MARK).exists():
            raise SourceError(f"{out} exists and is no earlier demonstration; name another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


def play(scene: Path, out: Path, matcher: str) -> tuple[int, Path]:
    """Node, recorder and player, each in a process of its own.

    Returns:
        The shift of the stamps, ns, and the file of the adapted weights.
    """
    from .record import TOPICS

    environment = os.environ | {"ROS_DOMAIN_ID": str(free_domain()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    adapted = out / "adapted.safetensors"
    parameters = {
        "mode": MODE,
        "matcher.name": matcher,
        "weights_dir": str(out / "weights"),
        "base_from_camera": "[0.0,0.0,0.0,-0.5,0.5,-0.5,0.5]",  # base_link at the camera, x along its optical axis
    }
    given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    inputs = {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC, "depth/image": DEPTH_TOPIC}
    remapped = [part for name, topic in inputs.items() for part in ("-r", f"{name}:={topic}")]
    online = ["online", "--ros-args", *remapped, *given]
    record = [str(out / "published"), *(f"/{name}:{kind}" for name, kind in TOPICS.items())]
    recorder = "imatching_ros.offline.ros_tools.record"
    with (
        process("imatching_ros", *online, log=out / "node.log", environment=environment) as node,
        process(recorder, *record, log=out / "recorder.log", environment=environment),
    ):
        wait_for(node, out / "node.log", "active", 60.0)
        shift_ns = play_scene(scene, environment)
        save_weights(adapted, environment)
        if node.poll() is not None:
            raise SourceError(f"the node ended with code {node.returncode}:\n{(out / 'node.log').read_text()}")
    return shift_ns, adapted


def play_scene(scene: Path, environment: dict[str, str]) -> int:
    """Plays the images once the node has subscribed, stamped with the present; returns the shift of the stamps, ns."""
    topics = [IMAGE_TOPIC, INFO_TOPIC, DEPTH_TOPIC]
    command = [sys.executable, "-m", "imatching_ros.offline.ros_tools.play", str(scene), "--restamp"]
    command += ["--topics", *topics, "--wait-for", *topics]
    played = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if played.returncode:
        raise SourceError(f"the player ended with code {played.returncode}")
    return json.loads(played.stdout.splitlines()[-1])["shift_ns"]


def save_weights(path: Path, environment: dict[str, str]) -> None:
    """Has the node write the weights in use."""
    import rclpy

    from imatching_ros.srv import Weights

    context = rclpy.Context()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = environment["ROS_AUTOMATIC_DISCOVERY_RANGE"]
    rclpy.init(args=[], context=context, domain_id=int(environment["ROS_DOMAIN_ID"]))
    try:
        node = rclpy.create_node("demo", context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        client = node.create_client(Weights, "/imatching/save_weights")
        if not client.wait_for_service(20.0):
            raise SourceError("the node offers no service ~/save_weights")
        future = client.call_async(Weights.Request(name=str(path)))
        rclpy.spin_until_future_complete(node, future, executor, 30.0)
        if not future.done() or not future.result().success:
            raise SourceError(
                f"the weights were not saved: {future.result().message if future.done() else 'no answer'}"
            )
    finally:
        rclpy.shutdown(context=context)


def write_run(scene: Path, out: Path, args: argparse.Namespace, shift_ns: int) -> dict[str, Any]:
    """The run's folder from what was recorded; returns its metrics."""
    from ...core.config import Config
    from ..evaluation.run_writer import RunWriter
    from ..recordings.base import SourceOptions
    from ..recordings import open_source
    from .record import add_published

    source = open_source(scene, SourceOptions(mode=MODE))
    camera = {
        name: getattr(source.camera, name)
        for name in ("width", "height", "fx", "fy", "cx", "cy", "model", "distortion", "baseline_m")
    }
    config = Config().with_values({"matcher.name": args.matcher, "odometry.mode": MODE})
    more: dict[str, Any] = {"seed": config.seed}
    more["source"] = {"path": str(scene), "name": scene.name, "mode": MODE, "camera": camera}
    writer = RunWriter(out / "run", config)
    more |= add_published(writer, out / "published", shift_ns)
    return writer.finish(source.groundtruth(), [], more)


def replay_without_learning(recording: Path, folder: Path, matcher: str, weights: Path | None = None) -> dict[str, Any]:
    """The metrics of odometry on every image, with these weights, or the shipped ones."""
    options = ["--mode", MODE, "--learning", "off", "--matcher", matcher, "--quiet"]
    options += [] if weights is None else ["--weights", str(weights)]
    command("replay", str(recording), "--out", str(folder), *options, stdout=subprocess.DEVNULL)
    return json.loads((folder / "metrics.json").read_text())


def score_matching(held_out: Path, out: Path, matcher: str, adapted: Path) -> dict[str, Any]:
    """{matcher: {frame gap: share of right matches within 1, 3 and 5 px}} of frozen and adapted weights; figures for the report."""
    from ..progress import Progress
    from ...core.config import MatcherConfig
    from ..evaluation.frozen_adapted import compare_frozen_adapted
    from ..evaluation.matching import count_pairs
    from ..recordings.base import SourceOptions
    from ..recordings import open_source

    source, gaps, pairs = open_source(held_out, SourceOptions(mode=MODE)), (1, 5), 20
    with Progress("matching", count_pairs(source, gaps, pairs), "pairs") as progress:
        data = compare_frozen_adapted(
            out / "run",
            source,
            MatcherConfig(name=matcher),
            adapted,
            gaps,
            pairs,
            unseen=True,
            on_progress=progress.update,
        )
    return {result["matcher"]: {gap: v["mma"] for gap, v in result["gaps"].items()} for result in data["results"]}


def table(runs: dict[str, dict[str, Any]], accuracy: dict[str, Any]) -> str:
    """The results, a line each.

    Args:
        runs: {name: metrics} of odometry, the one that learned under "learning".
        accuracy: of matching, as `score_matching` returns it.
    """
    metrics = runs["learning"]
    latency, learning = metrics["latency_ms"], metrics["learning"]
    shares = {
        name: "; ".join(
            f"gap {gap}: " + " ".join(f"{100 * share:.1f}" for share in mma.values()) for gap, mma in gaps.items()
        )
        for name, gaps in accuracy.items()
    }
    rows = {
        "frames": f"{metrics['frames']} processed, {metrics['frames_dropped']} dropped, "
        f"{metrics['tracked_frames']} tracked, {metrics['lost_frames']} lost",
        "learning": f"{learning['steps']} steps on {learning['samples']} windows, {learning['promotions']} promotions, "
        f"{learning['rollbacks']} rollbacks",
        "latency": " / ".join(f"{latency[key]:.0f}" for key in ("p50", "p95", "p99"))
        + " ms p50/p95/p99, from the image's stamp",
        **{f"ATE, {name}": f"{ate_text(run)}, {run['keyframes']} keyframes" for name, run in runs.items()},
        **{f"matches, {name}": f"{text} % within 1/3/5 px (other path)" for name, text in shares.items()},
    }
    if not learning["promotions"]:
        rows["adapted"] = "nothing was promoted: the adapted weights are the shipped ones"
    sent = metrics["frames"] + metrics["frames_dropped"]
    if metrics["frames_dropped"] > MOST_DROPPED * sent:
        rows["too slow"] = (
            f"the computer had no time for {metrics['frames_dropped']} of {sent} images, so tracking and learning suffer: try "
            "again with nothing else running"
        )
    return "\n" + "\n".join(f"{name:<26}{text}" for name, text in rows.items())


def ate_text(metrics: dict[str, Any]) -> str:
    ate = metrics["ate"]
    if not ate:
        return metrics["no_truth_because"]
    return f"{ate['rmse']:.3f} m = {ate['percent_of_path']:.2f} % of {ate['path_length_m']:.1f} m ({ate['alignment']})"


def print_step(step: str, text: str) -> None:
    print(f"[{step}] {text}", flush=True)


def command(*arguments: str, stdout: int | None = None) -> None:
    """`python -m imatching_ros ...` on all cores; its progress goes to the terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    done = subprocess.run([sys.executable, "-m", "imatching_ros", *arguments], stdout=stdout, env=environment)
    if done.returncode:
        raise SourceError(f"'imatching_ros {' '.join(arguments)}' ended with code {done.returncode}")


def main() -> int:
    """Runs the demonstration; exit codes as `python -m imatching_ros`."""
    parser = argparse.ArgumentParser("scripts/demo", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except ImatchingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
