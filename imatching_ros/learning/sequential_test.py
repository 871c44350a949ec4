"""The sequential test of learning: is one set of weights better than another, on windows in a row?

Candidates, deployed weights and fine-tuning are decided by it. A candidate's test may err only as often as its share of one
hour's rate of false promotions allows (`AlphaSpending`), however many candidates that hour brings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from math import log2, sqrt

import numpy as np
from scipy.special import stdtrit

NEW_SHARE = 0.25  # of a window's keyframes: with fewer that were not in the last window compared, it shows nothing new
# Of the gains of neighbouring windows, no more than three quarters of whose keyframes are shared. Measured by `bench guard` on two
# real recordings: .11 and .07.
CORRELATION = 0.2
WORSE_RATE = 0.05  # of calling equal weights worse; costs a candidate its progress, promotes nothing
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True)
class Look:
    """A number of windows after which the test may end, and how often equal weights may be called better there."""

    windows: int
    error_rate: float


def plan_looks(fewest: int, most: int, error_rate: float) -> tuple[Look, ...]:
    """Looks at the fewest windows, halfway, and at the most; each gets a share in proportion to the square of its windows (Bonferroni)."""
    at = sorted({min(fewest, most), (fewest + most) // 2, most})
    return tuple(Look(n, error_rate * n**2 / sum(m**2 for m in at)) for n in at)


class SequentialTest:
    """A one-sided t-test of the mean gain at a few looks, for windows whose neighbours are correlated.

    After a look it ends as `better`, as `worse`, or as `no_better`: at the last one, or before it once the mean gain is negative.
    """

    def __init__(self, looks: tuple[Look, ...]) -> None:
        self.looks = looks
        self._gains: list[float] = []

    @property
    def windows(self) -> int:
        """Windows added so far."""
        return len(self._gains)

    @property
    def most(self) -> int:
        """Windows after which it has ended."""
        return self.looks[-1].windows

    @property
    def at_look(self) -> bool:
        """Whether the windows so far may decide."""
        return any(look.windows == self.windows for look in self.looks)

    def add(self, gain: float) -> tuple[str, str]:
        """Outcome and reason with the gain of one more window: the error of the weights in use minus that of the others."""
        self._gains.append(gain)
        look = next((look for look in self.looks if look.windows == self.windows), None)
        if look is None:
            return "pending", "too few windows"
        t = correlated_t(np.array(self._gains))
        limit = t_limit(look.error_rate, look.windows)
        if t > limit:
            return "better", f"t = {t:.2f} > {limit:.2f}"
        worse = t_limit(WORSE_RATE / len(self.looks), look.windows)
        if t < -worse:
            return "worse", f"t = {t:.2f} < {-worse:.2f}"
        if t < 0 or look is self.looks[-1]:
            return "no_better", f"t = {t:.2f} after {self.windows} windows, {limit:.2f} would be better"
        return "pending", f"t = {t:.2f} is undecided"


def enough_new(keyframe_ids: Collection[int], last_ids: Collection[int]) -> bool:
    """Whether a window's keyframes are new enough, after those of the last window compared."""
    return len(set(keyframe_ids) - set(last_ids)) >= NEW_SHARE * len(keyframe_ids)


class AlphaSpending:
    """Shares the rate of false promotions of one hour of driving among the tests of any such hour, whenever it begins.

    The k-th share is rate / k (k + 1). A test takes the first share that no test of the hour before it holds, so no hour
    spends a share twice, and their sum is never more than `rate`. A test that promotes gives its share back, as in the fallback
    procedure (Wiens 2003): where promoting was right nothing was spent.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._taken_ns: dict[int, int] = {}  # share: when it was taken
        self._last = 0

    def take(self, stamp_ns: int) -> tuple[int, float]:
        """The number k of the next test's share, and its error rate."""
        # A clock that was set back by more than an hour begins anew.
        self._taken_ns = {k: at_ns for k, at_ns in self._taken_ns.items() if abs(stamp_ns - at_ns) < HOUR_NS}
        self._last = next(k for k in count(1) if k not in self._taken_ns)
        self._taken_ns[self._last] = stamp_ns
        return self._last, self._rate / (self._last * (self._last + 1))

    def give_back(self) -> None:
        """The last test promoted."""
        self._taken_ns.pop(self._last, None)


def candidate_looks(fewest: int, most: int, number: int, error_rate: float) -> tuple[Look, ...]:
    """The looks of a candidate with the k-th share of an hour. A smaller share takes more windows for the same power: most (1 + log2(k) / 3)."""
    return plan_looks(fewest, round(most * (1 + log2(number) / 3)), error_rate)


def correlated_t(values: np.ndarray) -> float:
    """Student's t of the mean against zero, for windows whose neighbours are correlated by r = `CORRELATION`.

    The mean of n values varies by 1 + 2r (n - 1) / n more than that of independent ones, while the variance among them is
    1 - 2r / n of theirs.
    """
    n, r = len(values), CORRELATION
    excess = (1 + 2 * r * (n - 1) / n) / (1 - 2 * r / n)
    return float(values.mean()) / max(float(values.std(ddof=1)) * sqrt(excess / n), 1e-9)


def t_limit(error_rate: float, windows: int) -> float:
    """What t of so many windows exceeds at that rate where the mean is zero."""
    return float(stdtrit(windows - 1, 1 - error_rate))
