"""Tables in Markdown, which terminals and documents show alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows; the first is the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def format_number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def format_mean(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean of the numbers among the values, or a dash without any."""
    known = [value for value in values if value is not None]
    return format_number(float(np.mean(known)) if known else None, form)
