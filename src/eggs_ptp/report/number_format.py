"""Numbers, sizes and durations as text."""

import math
from datetime import timedelta

import humanize

NO_VALUE = "–"


def format_number(value: float | None) -> str:
    """Format a number with four significant digits: `0.03870`, `28.28`, `12 345`; a dash for None."""
    if value is None:
        return NO_VALUE
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", "\u202f")  # a narrow no-break space
    return f"{value:#.4g}"


def format_with_error(value: float | None, error: float | None) -> str:
    """Format a number with its standard error, to two significant digits of the error: `28.28 ± 0.52`."""
    if value is None or error is None or not error > 0 or not math.isfinite(error):
        return format_number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def format_bytes(count: float | None) -> str:
    """Format a size in decimal units: `812.0 kB`, `1.8 MB`, `13.5 GB`; a dash for None."""
    return NO_VALUE if count is None else humanize.naturalsize(count)


def format_duration(seconds: float) -> str:
    """Format a duration: `0.42 seconds`, `12 seconds`, `3 minutes and 20 seconds`."""
    if seconds < 10:
        return humanize.precisedelta(timedelta(seconds=round(seconds, 2)), format="%.2f")
    return humanize.precisedelta(timedelta(seconds=round(seconds)), format="%.0f")
