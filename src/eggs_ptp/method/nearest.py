"""The nearest known name, for error messages about an unknown one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"`, or an empty string if no known name is similar.

    Args:
        name: The unknown name.
        known: The names that exist.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
