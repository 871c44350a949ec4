"""Whether enough of what a frame looks for is where its pose has it.

Of the landmarks looked for, frames find a share that depends on matcher and scene. A pose with which much less than usual agrees may be of
another place that looks alike.
"""

from __future__ import annotations

from .tracking import Located, Sighting

# In parts of the usual share:
DOUBTED = 0.25  # below this a pose needs a second look,
WHOLE = 0.8  # unless so much is found around what is found, and the rest of the picture is hidden
REFUSED = 0.25  # below this the second look's pose is not believed either,
FIRM = 0.5  # and below this only right after the last pose, not once lost; it is neither called tracking then nor learned from
PARTLY = 0.4  # so much around what is found lets the first pose pass in the same way, when the second look fails

BEYOND = 3.0  # the second look searches so many times farther than it counts: by chance alone less than a tenth lies where it counts
_MEMORY = 0.9  # of the running mean, a frame


class Agreement:
    """The usual share of a map, and how poses compare with it."""

    def __init__(self) -> None:
        self.usual = 0.0  # 0: not known yet

    def forget(self) -> None:
        """For a new map, perhaps of a darker place."""
        self.usual = 0.0

    def note(self, sighting: Sighting, located: Located, within_px: float) -> None:
        """Takes a pose that is beyond doubt into the running mean."""
        share = _share(sighting, located, within_px)
        self.usual = share if self.usual == 0 else _MEMORY * self.usual + (1 - _MEMORY) * share

    def of(self, sighting: Sighting, located: Located, within_px: float) -> float:
        """Share of the landmarks looked for that were found within `within_px` of where the pose has them, in parts of what is usual."""
        return _share(sighting, located, within_px) / self.usual if self.usual > 0 else 1.0


def _share(sighting: Sighting, located: Located, within_px: float) -> float:
    return int((located.residual_px < within_px).sum()) / max(len(sighting.rows) + len(sighting.missed), 1)
