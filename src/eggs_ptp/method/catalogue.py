"""METHODS: every named method, one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from eggs_ptp.errors import MethodError
from eggs_ptp.method.method import Method
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import Step

_TOP_LAYER = Step("top", {"group": "layer"})
_TOP_ROW = Step("top", {"group": "row"})
_DEAL_ASSIGN = Step("deal", {"assign": True})

_ROWS = (
    Method(
        "magnitude",
        "Largest weights",
        "Zhu & Gupta, arXiv:1710.01878",
        {"score": Step("magnitude"), "select": _TOP_LAYER},
    ),
    Method(
        "wanda",
        "Weight times input norm, compared within an output row",
        "Wanda, arXiv:2306.11695",
        {"score": Step("wanda"), "select": _TOP_ROW},
    ),
    Method(
        "ri",
        "Relative importance, without activations",
        "RIA, ICLR 2024 (OpenReview Tr0lPx9woF)",
        {"score": Step("ri"), "select": _TOP_LAYER},
    ),
    Method(
        "ria",
        "Relative importance and activations",
        "RIA, ICLR 2024 (OpenReview Tr0lPx9woF)",
        {"score": Step("ria"), "select": _TOP_LAYER},
    ),
    Method(
        "ria_cp",
        "RIA after channel permutation with assignment refinement",
        "RIA, ICLR 2024 (OpenReview Tr0lPx9woF)",
        {"score": Step("ria"), "permute": _DEAL_ASSIGN, "select": _TOP_LAYER},
    ),
    Method(
        "eggs_paper",
        "EGGS-PTP as read from its sources: circulant diagonals, B = 5, plain deal",
        "EGGS-PTP, arXiv:2508.09471",
        {"score": Step("ria"), "permute": Step("deal"), "select": Step("expander", {"B": 5})},
    ),
    Method(
        "eggs",
        "EGGS-PTP, best measured reading: best blocks, B chosen automatically, assignment refinement",
        "EGGS-PTP, arXiv:2508.09471, with this project's blocks and automatic B",
        {
            "score": Step("ria"),
            "permute": _DEAL_ASSIGN,
            "select": Step("expander", {"B": "auto", "diagonal": "best"}),
        },
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
DEFAULT_METHOD = "eggs"


def find_method(name: str) -> Method:
    """The method of that name; `-` and `_` are the same.

    Raises:
        MethodError: no such method; names the nearest.
    """
    key = name.strip().lower().replace("-", "_")
    if key not in METHODS:
        raise MethodError(f"no method is named {name!r}{nearest(key, METHODS)}; known: {', '.join(METHODS)}")
    return METHODS[key]
