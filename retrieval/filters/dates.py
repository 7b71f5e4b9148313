"""Dates as people write them: a year, a month, a day or a time, each a span."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["DATE_FORMS", "Date"]

DATE_FORMS = "YYYY, YYYY-MM, YYYY-MM-DD, or YYYY-MM-DD HH:MM[:SS]"

_DATE = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})"
    r"(?:[ Tt]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?)?)?)?"
)


@dataclass(frozen=True, slots=True)
class Date:
    """A span of time by the clock on the wall, without a time zone.

    Attributes:
        text: as it is written, in one of `DATE_FORMS`, with seconds of up to six decimals.
        start: its first moment.
        end: the first moment after it.
    """

    text: str
    start: datetime
    end: datetime

    @classmethod
    def parse(cls, text: str) -> Date:
        """Return the span that a text means: `2023-06` is all of June.

        Raises:
            ValueError: it is no date, or none of the calendar (`2023-02-30`).
        """
        found = _DATE.fullmatch(text.strip())
        if found is None:
            raise ValueError("it has another form")
        year, month, day, hour, minute, second, fraction = found.groups()
        start = datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            int((fraction or "0").ljust(6, "0")),
        )
        canonical = found.group().upper().replace("T", " ")
        return cls(canonical, start, _end(start, month, day, hour, second, fraction))


def _end(
    start: datetime,
    month: str | None,
    day: str | None,
    hour: str | None,
    second: str | None,
    fraction: str | None,
) -> datetime:
    try:
        if month is None:
            return start.replace(year=start.year + 1)
        if day is None:
            # The 28th and four days are in the next month, whichever this one is.
            return (start.replace(day=28) + timedelta(days=4)).replace(day=1)
        if hour is None:
            return start + timedelta(days=1)
        if second is None:
            return start + timedelta(minutes=1)
        return start + timedelta(microseconds=10 ** (6 - len(fraction or "")))
    except (OverflowError, ValueError):
        # What ends with the calendar.
        return datetime.max
