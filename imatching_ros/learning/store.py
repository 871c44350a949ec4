"""Learned weights on disk: every promotion is kept, and the last good ones are found again after a restart."""

from __future__ import annotations

import re
from pathlib import Path

from ..datatypes import WeightsSnapshot
from ..errors import WeightsError
from ..matching.base import Matcher
from ..matching.weights import WeightsHeader, load_weights, write_weights

CURRENT = "current"
KEPT = 10  # promoted files kept; the robot's disk is not to fill up


class WeightsStore:
    """A directory with one file a profile, and the files of the last promotions."""

    def __init__(self, directory: Path, profile: str = CURRENT) -> None:
        self.directory, self.profile = directory, profile or CURRENT

    def path(self, profile: str) -> Path:
        """The file of a profile. WeightsError when the name is not one."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", profile):
            raise WeightsError(f"'{profile}' is not the name of a profile; use letters, digits, '_' and '-', or a .safetensors file")
        return self.directory / f"{profile}.safetensors"

    def write(self, matcher: str, snapshot: WeightsSnapshot, provenance: dict) -> Path:
        """Writes the snapshot under its version and as the profile; both atomically."""
        provenance = {**provenance, "steps": snapshot.steps, "probe_before_px": snapshot.probe_before,
                      "probe_after_px": snapshot.probe_after}
        path = self.directory / f"v{snapshot.version:05d}.safetensors"
        for target in (path, self.path(self.profile)):
            write_weights(target, matcher, snapshot.state, snapshot.version, provenance)
        for old in sorted(self.directory.glob("v[0-9]*.safetensors"))[:-KEPT]:
            old.unlink()
        return path

    def resume(self, matcher: Matcher) -> WeightsHeader | None:
        """Loads the profile's weights into the matcher; None when there are none yet. WeightsError when they are damaged."""
        path = self.path(self.profile)
        return load_weights(matcher, path) if path.is_file() else None
