"""Weights files: what is on disk, where it came from, how it scored; how two differ; a file for another robot or runtime.

examples:
  python -m imatching_ros weights list run/weights
  python -m imatching_ros weights show run/weights/current.safetensors
  python -m imatching_ros weights diff default run/weights/current.safetensors
  python -m imatching_ros weights export run/weights/current.safetensors robot2.safetensors
  python -m imatching_ros weights export default expectation.onnx --size 640x480
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...core.errors import WeightsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|show|diff|export")
    verb = verbs.add_parser("list", help="the weights files of folders (default: those shipped)")
    verb.add_argument("folders", type=Path, nargs="*")
    verb.add_argument("--json", action="store_true")
    verb = verbs.add_parser("show", help="everything in a file's header")
    verb.add_argument("file", help="a .safetensors file, or 'default', or NAME for a matcher's shipped weights")
    verb.add_argument("--json", action="store_true")
    verb = verbs.add_parser("diff", help="how far two files are apart, tensor by tensor")
    verb.add_argument("first")
    verb.add_argument("second")
    verb.add_argument("--json", action="store_true")
    verb = verbs.add_parser(
        "export",
        help="a checked copy (.safetensors) or the matcher as one ONNX network (needs onnx, onnxscript, onnxruntime)",
    )
    verb.add_argument("file")
    verb.add_argument("out", type=Path)
    verb.add_argument(
        "--size", default="640x480", metavar="WxH", help="image size of the ONNX network (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    return {"list": _list, "show": _show, "diff": _diff, "export": _export}[args.verb](args)


def find(name: str) -> Path:
    """A file, or the shipped weights of a matcher.

    Raises:
        WeightsError: neither.
    """
    from ...core.config import MatcherConfig
    from ...matching.weights import DEFAULT_DIR, resolve_weights

    shipped = resolve_weights(MatcherConfig()) if name == "default" else DEFAULT_DIR / f"{name}.safetensors"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in DEFAULT_DIR.glob("*.safetensors"))) or "none"
    raise WeightsError(
        f"there are no weights '{name}'; expected a .safetensors file, 'default', or a matcher with shipped weights ({known})"
    )


def describe(path: Path) -> dict[str, Any]:
    """The header of a file, and whether its contents agree with it."""
    from ...matching.weights import read_header, read_weights

    header = read_header(path)
    entry: dict[str, Any] = {
        "file": str(path),
        "matcher": header.matcher,
        "version": header.version,
        "hash": header.hash,
        "provenance": header.provenance,
        "bytes": path.stat().st_size,
    }
    try:
        _, state = read_weights(path)
        entry |= {"sound": True, "parameters": sum(t.numel() for t in state.values()), "tensors": len(state)}
    except WeightsError as error:
        entry |= {"sound": False, "damage": str(error)}
    return entry


def _list(args: argparse.Namespace) -> int:
    from ...matching.weights import DEFAULT_DIR

    entries = []
    for folder in args.folders or [DEFAULT_DIR]:
        if not folder.is_dir():
            raise WeightsError(f"{folder} is not a folder; expected one that holds .safetensors files")
        for path in sorted(folder.glob("*.safetensors")):
            try:
                entries.append(describe(path))
            except WeightsError as error:
                entries.append({"file": str(path), "sound": False, "damage": str(error)})
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    if not entries:
        print("no .safetensors files")
    for e in entries:
        if "matcher" not in e:
            print(f"{e['file']}: {e['damage']}")
            continue
        scores = {
            k: v
            for k, v in e["provenance"].items()
            if k in ("kind", "steps", "verdict", "validation_before_px", "validation_after_px", "seed")
        }
        summary = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in scores.items())
        size = f"{e['bytes'] / 1e6:.2f} MB{'' if e['sound'] else ', DAMAGED'}"
        print(f"{e['file']}: {e['matcher']} version {e['version']}, {e['hash']}, {size}  {summary}".rstrip())
    return 0


def _show(args: argparse.Namespace) -> int:
    entry = describe(find(args.file))
    if args.json:
        print(json.dumps(entry, indent=2))
    else:
        provenance = entry.pop("provenance")
        for key, value in {**entry, **{f"  {k}": v for k, v in provenance.items()}}.items():
            print(f"{key:<22} {value}")
    return 0 if entry["sound"] else 1


def diff(first: Path, second: Path) -> dict[str, Any]:
    """Relative distances |b - a| / |a| per tensor and over all.

    Raises:
        WeightsError: a damaged file, or two of different networks.
    """
    from ...matching.weights import read_weights

    (header_a, a), (header_b, b) = read_weights(first), read_weights(second)
    if header_a.matcher != header_b.matcher or {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        raise WeightsError(f"{first} ({header_a.matcher}) and {second} ({header_b.matcher}) are of different networks")
    change = {k: float((b[k].double() - a[k].double()).norm()) for k in a}
    size = {k: float(a[k].double().norm()) for k in a}
    total = sum(v**2 for v in change.values()) ** 0.5 / max(sum(v**2 for v in size.values()) ** 0.5, 1e-12)
    return {
        "matcher": header_a.matcher,
        "versions": [header_a.version, header_b.version],
        "hashes": [header_a.hash, header_b.hash],
        "identical": header_a.hash == header_b.hash,
        "relative_change": total,
        "tensors": {
            k: change[k] / max(size[k], 1e-12) for k in sorted(a, key=lambda k: -change[k] / max(size[k], 1e-12))
        },
    }


def _diff(args: argparse.Namespace) -> int:
    result = diff(find(args.first), find(args.second))
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(
        f"{result['matcher']} "
        + " -> ".join(f"{version} ({digest})" for version, digest in zip(result["versions"], result["hashes"]))
        + ": "
        + ("identical" if result["identical"] else f"changed by {100 * result['relative_change']:.3f} %")
    )
    for name, change in result["tensors"].items():
        if change > 0:
            print(f"  {100 * change:8.3f} %  {name}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from ...matching.weights import read_weights, write_weights

    path = find(args.file)
    header, state = read_weights(path)
    if args.out.suffix == ".safetensors":
        write_weights(
            args.out, header.matcher, state, header.version, {**header.provenance, "exported_from": path.name}
        )
        print(
            f"{args.out}: {header.matcher} version {header.version}, {header.hash}; load it with --weights {args.out}"
        )
        return 0
    if args.out.suffix != ".onnx":
        raise WeightsError(f"{args.out} ends in '{args.out.suffix}', expected .safetensors or .onnx")
    try:
        width, height = (int(x) for x in args.size.split("x"))
    except ValueError:
        raise WeightsError(f"--size {args.size}: expected WIDTHxHEIGHT such as 640x480") from None
    from ..training.onnx_export import export_onnx

    print(export_onnx(path, args.out, height, width))
    return 0
