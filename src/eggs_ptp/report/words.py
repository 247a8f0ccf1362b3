"""Words: numbers as a person reads them."""

import math


def plain(value: float | None) -> str:
    """Four digits: `0.03870`, `28.28`, `12 345`; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", "\u202f")  # a narrow space that does not break
    return f"{value:#.4g}"


def with_error(value: float | None, error: float | None) -> str:
    """`28.28 ± 0.52`: as many decimals as two digits of the error have."""
    if value is None or error is None or not error > 0 or not math.isfinite(error):
        return plain(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def bytes_text(count: float | None) -> str:
    """Decimal units: `812 kB`, `1.78 MB`, `13.5 GB`."""
    if count is None:
        return "–"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
