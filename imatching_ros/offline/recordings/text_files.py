"""Text files of data sets: their rows, and stamps in seconds or smaller units."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from ...core.errors import SourceError

ENCODING = "utf-8-sig"  # UTF-8, with or without the byte order mark that Windows' editors write

_COMMENT = ("#", "%", "//")
_NOT_DATA = (*_COMMENT, "timestamp")


@dataclass(frozen=True)
class Row:
    """One line of a text file, split into fields."""

    path: Path
    line: int  # from 1
    fields: list[str]
    has_commas: bool = False  # or semicolons

    def text(self, column: int) -> str:
        """Raises SourceError when the field is missing."""
        if column >= len(self.fields):
            raise SourceError(
                f"{self.path}, line {self.line}: {len(self.fields)} columns, expected {column + 1} or more"
            )
        return self.fields[column]

    def number(self, column: int) -> float:
        """Raises SourceError when the field is missing or no number; `nan` is one."""
        return float(self.decimal(column))

    def decimal(self, column: int) -> Decimal:
        """The same with every digit, for stamps."""
        try:
            return Decimal(self.text(column))
        except InvalidOperation:
            raise SourceError(f"{self.path}, line {self.line}: '{self.fields[column]}' is not a number") from None


def read_text(path: Path) -> str:
    """Raises SourceError when the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {path}: {error}") from None


def read_rows(path: Path, columns: int = 0) -> list[Row]:
    """The rows of a table without comments, empty lines and the names of its columns.

    Fields are separated by white space, commas or semicolons.

    Args:
        columns: so many at most, the last one with whatever follows (file names may hold spaces); 0 for any number.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(_NOT_DATA):
            continue
        # A comma is a decimal comma in files with semicolons; as a number it is then refused by name.
        separator = r"[;\s]+" if ";" in line else r"[,\s]+"
        rows.append(
            Row(
                path,
                number,
                re.split(separator, line.rstrip(",; "), max(columns - 1, 0)),
                re.search("[,;]", line) is not None,
            )
        )
    return rows[1:] if rows and re.match(r"[\"']?(?!nan\b|inf)[A-Za-z]", rows[0].fields[0]) else rows


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """A table whose first line names its columns -> the names and the rows, without comments and empty lines.

    Fields are separated by commas, semicolons or tabs, else by white space: the first of these in the line of names; a field in
    quotes may hold the separator.
    """
    lines = [(k, text.strip()) for k, text in enumerate(read_text(path).splitlines(), 1)]
    lines = [(k, text) for k, text in lines if text and not text.startswith(_COMMENT)]
    if not lines:
        return [], []
    separator = next((mark for mark in ",;\t" if mark in lines[0][1]), " ")
    try:
        split = list(csv.reader((text for _, text in lines), delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise SourceError(f"cannot read {path}: {error}") from None
    columns, *rows = [[field.strip() for field in fields] for fields in split]
    return columns, [Row(path, k, fields, separator != " ") for (k, _), fields in zip(lines[1:], rows)]


def read_stamps(rows: Sequence[Row], frames_ns: np.ndarray | None = None, unit_ns: int | None = None) -> np.ndarray:
    """The first column, stamps in s, ms, us or ns -> (N,) int64 ns.

    The magnitude decides, so that the largest stamp lies before the year 5138. Where the frames' times are known, the unit
    under which most frames have a stamp within 20 ms decides: a count that starts at zero has no telling magnitude.

    Args:
        unit_ns: of formats that define it.

    Raises:
        SourceError: something that is no time, with its line.
    """
    stamps = [row.decimal(0) for row in rows]
    for row, stamp in zip(rows, stamps):
        if not stamp.is_finite() or abs(stamp) * (unit_ns or 1) >= 2**63:
            raise SourceError(f"{row.path}, line {row.line}: {stamp} is no time in s, ms, us or ns")
    unit_ns = unit_ns or _guess_unit_ns(stamps, frames_ns)
    return np.array([int((stamp * unit_ns).to_integral_value()) for stamp in stamps], np.int64)


def _guess_unit_ns(stamps: Sequence[Decimal], frames_ns: np.ndarray | None) -> int:
    largest = max((abs(stamp) for stamp in stamps), default=Decimal(0))
    units_ns = (10**9, 10**6, 10**3, 1)
    by_magnitude = next((unit for unit in units_ns if largest * unit < 10**20), 1)
    if frames_ns is None or not len(frames_ns):
        return by_magnitude
    values, tolerance_ns = np.sort(np.array(stamps, float)), 20_000_000

    def count_matched(unit: int) -> int:
        first, last = (np.searchsorted(values * unit, frames_ns + d) for d in (-tolerance_ns, tolerance_ns))
        return int((first < last).sum())

    return max((by_magnitude, *units_ns), key=count_matched)  # the first of equals
