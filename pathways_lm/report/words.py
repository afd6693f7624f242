"""Numbers, times and settings as a page says them."""

from datetime import UTC, datetime
from typing import Any


def setting(value: Any) -> str:
    """A config value; a text keeps its quotes where spaces or nothing would be lost to the eye."""
    return repr(value) if isinstance(value, str) and value.split() != [value] else str(value)


def big(count: float) -> str:
    """13115392 as "13.1 M"."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count:,.0f}"


def duration(seconds: float) -> str:
    """The two largest units: "2 h 5 min", "9 min 42 s"."""
    left, parts = round(seconds), []
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, left = divmod(left, unit)
        if amount:
            parts.append(f"{amount} {name}")
    return " ".join(parts[:2]) or "under a second"


def clock(seconds: float) -> str:
    """Seconds since 1970 as a day and time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
