"""What happens to cameras: frames that never arrive, black spells, a covered lens, jumps of the exposure, a kidnapped robot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...core.types import Frame, OdometryOutput

Change = Callable[[int, Frame], "Frame | None"]


@dataclass(frozen=True)
class Fault:
    """Applied to the frame at an index, `apply` gives the changed frame, or None for one that never arrives."""

    name: str
    apply: Change
    end: int  # index of the first frame that is whole again


@dataclass(frozen=True)
class Recovery:
    fault: str
    frames: int | None  # until the first pose, 1 = at once; None = never
    lost_after: int  # frames without a pose after the fault's end
    maps: int  # 1 = the old map was found again
    invented: int  # poses given while the image showed nothing


def make_faults(at: int) -> list[Fault]:
    """The catalogue, each fault beginning at frame `at`."""
    faults = [Fault(f"{n} dropped", _during(at, n, lambda i, f: None), at + n) for n in (5, 10, 20)]
    faults.append(
        Fault("10 black", _during(at, 10, lambda i, f: _painted(f, lambda image: torch.zeros_like(image))), at + 10)
    )
    faults.append(
        Fault("10 covered", _during(at, 10, lambda i, f: _painted(f, lambda image: _grain(image, i))), at + 10)
    )
    faults.append(
        Fault("exposure x 0.4", _during(at, 10**9, lambda i, f: _painted(f, lambda image: _exposed(image, 0.4))), at)
    )
    faults.append(
        Fault("exposure x 1.8", _during(at, 10**9, lambda i, f: _painted(f, lambda image: _exposed(image, 1.8))), at)
    )
    faults.append(Fault("kidnapped", _during(at, 40, lambda i, f: None), at + 40))
    return faults


def judge(fault: Fault, outputs: list[OdometryOutput | None]) -> Recovery:
    """`outputs` has one entry per frame of the source, None for one that never arrived."""
    after = [o for o in outputs[fault.end :] if o is not None]
    first = next((k for k, o in enumerate(after) if o.T_WC is not None), None)
    blind = outputs[fault.end - 10 : fault.end] if fault.name in ("10 black", "10 covered") else []
    return Recovery(
        fault.name,
        None if first is None else first + 1,
        sum(o.T_WC is None for o in after),
        1 + max((o.map_id for o in after), default=0),
        sum(o is not None and o.T_WC is not None for o in blind),
    )


def _during(start: int, count: int, change: Change) -> Change:
    return lambda i, frame: change(i, frame) if start <= i < start + count else frame


def _painted(frame: Frame, paint: Callable[[torch.Tensor], torch.Tensor]) -> Frame:
    return replace(frame, image=paint(frame.image), right=None if frame.right is None else paint(frame.right))


def _grain(image: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) * 3 + 12
    return noise.clamp(0, 255).to(torch.uint8)


def _exposed(image: torch.Tensor, gain: float) -> torch.Tensor:
    return (image.float() * gain).round().clamp(0, 255).to(torch.uint8)
