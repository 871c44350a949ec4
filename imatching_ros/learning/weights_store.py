"""Learned weights on disk: promotions are kept, and the last ones that passed post-deployment validation are resumed after a restart."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ..core.types import WeightsSnapshot
from ..core.errors import WeightsError
from ..matching.base import Matcher
from ..matching.weights import WeightsHeader, load_weights, read_header, write_weights

log = logging.getLogger(__name__)

CURRENT = "current"
KEPT = 10  # promoted files kept of a profile; the robot's disk is not to fill up
RESERVED = ("default", "previous")  # to load these means the shipped weights, and those in use before


class WeightsStore:
    """A directory with one file a profile, `PROFILE.safetensors`, and those of its last promotions, `PROFILE.v00042.safetensors`.

    A restart resumes the profile; promotions that never became one can be loaded by hand.
    """

    def __init__(self, directory: Path, profile: str = CURRENT) -> None:
        self.directory, self.profile = directory, profile or CURRENT

    def path(self, profile: str) -> Path:
        """The file of a profile. WeightsError when the name is not one."""
        if profile in RESERVED:
            raise WeightsError(
                f"'{profile}' cannot be the name of a profile, for it could never be loaded: 'default' stands for the "
                "shipped weights, 'previous' for those in use before; give another name"
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", profile):
            raise WeightsError(
                f"'{profile}' is not the name of a profile; use letters, digits, '_' and '-', or a .safetensors file"
            )
        return self.directory / f"{profile}.safetensors"

    def write(self, matcher: str, snapshot: WeightsSnapshot, provenance: dict, confirmed: bool) -> None:
        """Writes the snapshot, atomically: as the profile once it is confirmed, until then under its version."""
        provenance = {
            **provenance,
            "steps": snapshot.steps,
            "validation_before_px": snapshot.validation_before,
            "validation_after_px": snapshot.validation_after,
        }
        path = (
            self.path(self.profile)
            if confirmed
            else self.directory / f"{self.profile}.v{snapshot.version:05d}.safetensors"
        )
        write_weights(path, matcher, snapshot.state, snapshot.version, provenance)
        for old in self._promoted()[:-KEPT]:
            old.unlink()

    def newest_version(self) -> int:
        """The highest version that was written under this profile, 0 when none was; no number is given twice."""
        return max((int(file.name.split(".v")[-1].split(".")[0]) for file in self._promoted()), default=0)

    def resume(self, matcher: Matcher, base: str, named: bool) -> WeightsHeader | None:
        """Loads the profile's weights into the matcher; None when it holds none that belong there.

        Args:
            base: hash of the weights that the matcher was made with.
            named: the user chose the profile, say for a site: it is resumed whatever it was adapted from. Otherwise weights adapted
                from others than the base are renamed.

        Raises:
            WeightsError: damaged weights, or those of another network.
        """
        path = self.path(self.profile)
        if not path.is_file():
            return None
        header = read_header(path)
        if named or header.provenance.get("base") == base:
            return load_weights(matcher, path)
        other_name = f"{self.profile}_{header.hash}"
        for file in (path, *self._promoted()):
            file.rename(file.with_name(other_name + file.name[len(self.profile) :]))
        log.warning(
            f"{path} is not resumed, for it was adapted from other weights ({header.provenance.get('base', 'unknown')}) than "
            f"those given now ({base}); it is kept as profile '{other_name}', which can be loaded or named"
        )
        return None

    def _promoted(self) -> list[Path]:
        """The files of the profile's promotions, oldest first. No name of a profile contains a dot."""
        found = self.directory.glob(f"{self.profile}.v*.safetensors")
        return sorted(found, key=lambda file: (len(file.name), file.name))
