"""The catalogue of named methods, one row each, and how names are extended by further steps."""

from collections.abc import Mapping
from types import MappingProxyType

from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.errors import MethodError
from eggs_ptp.method.aliases import STEPS, current_step
from eggs_ptp.method.method import Method
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import SLOTS, Step, names
from eggs_ptp.method.update_pipeline import PIPELINE_SLOT, UpdatePipeline, joined

_SYMMETRIC = "Symmetric Pruning, arXiv:2501.18980"
_TOP_LAYER = Step("top", {"group": "layer"})
_TOP_ROW = Step("top", {"group": "row"})
_ALLOCATE_AND_ASSIGN = Step("allocate", {"assign": True})

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
        "RIA after a channel permutation refined by linear assignment",
        "RIA, ICLR 2024 (OpenReview Tr0lPx9woF)",
        {"score": Step("ria"), "permute": _ALLOCATE_AND_ASSIGN, "select": _TOP_LAYER},
    ),
    Method(
        "owanda",
        "Weight times output norm, over the layer (within a row it is magnitude)",
        f"{_SYMMETRIC}, corollary 3.3",
        {"score": Step("owanda"), "select": _TOP_LAYER},
    ),
    Method(
        "symwanda",
        "Weight times the sum of input norm and output norm",
        f"{_SYMMETRIC}, lemma 3.1",
        {"score": Step("symwanda"), "select": _TOP_LAYER},
    ),
    Method(
        "symwanda_squared",
        "Weight times the root of the summed squares of input and output norm",
        f"{_SYMMETRIC}, appendix B",
        {"score": Step("symwanda", {"form": "squared"}), "select": _TOP_LAYER},
    ),
    Method(
        "symmetric",
        "Weight times the norms of its column and its row",
        f"{_SYMMETRIC}, corollary 3.4",
        {"score": Step("symmetric"), "select": _TOP_LAYER},
    ),
    Method(
        "symmetric_squared",
        "Weight times the root of the summed squares of its column's and its row's norm",
        f"{_SYMMETRIC}, table 1",
        {"score": Step("symmetric", {"form": "squared"}), "select": _TOP_LAYER},
    ),
    Method(
        "diagonal",
        "Relative importance weighted by input and output norms",
        f"{_SYMMETRIC}, lemma 3.7",
        {"score": Step("diagonal"), "select": _TOP_LAYER},
    ),
    Method(
        "lp",
        "Relative importance by an lp norm (p = 1 is RIA)",
        f"{_SYMMETRIC}, equation 3",
        {"score": Step("lp"), "select": _TOP_LAYER},
    ),
    *(
        Method(
            f"lp_{p}",
            f"Relative importance by the l{p} norm",
            f"{_SYMMETRIC}, equation 3",
            {"score": Step("lp", {"p": p}), "select": _TOP_LAYER},
        )
        for p in (0, 1, 2, 3, 4, "inf")
    ),
    *(
        Method(
            f"lp_{strategy}",
            f"RIA re-weighted by strategy {strategy.upper()}",
            f"{_SYMMETRIC}, table 8",
            {"score": Step("lp", {"reweight": strategy}), "select": _TOP_LAYER},
        )
        for strategy in ("s1", "s2", "s3", "s4")
    ),
    Method(
        "per_output",
        "RIA's row term: each output neuron by its own sum (the table's Col-Sum)",
        f"{_SYMMETRIC}, table 3",
        {"score": Step("per_output"), "select": _TOP_LAYER},
    ),
    Method(
        "per_input",
        "RIA's column term: each input channel by its own sum (the table's Row-Sum)",
        f"{_SYMMETRIC}, table 3",
        {"score": Step("per_input"), "select": _TOP_LAYER},
    ),
    Method(
        "stochria",
        "RIA with row and column sums estimated from samples of a tenth",
        f"{_SYMMETRIC}, equation 4",
        {"score": Step("stochria"), "select": _TOP_LAYER},
    ),
    Method(
        "wanda_variant",
        "Wanda, pruning the same share of the summed score in every row",
        "Wanda, arXiv:2306.11695, appendix",
        {"score": Step("wanda"), "select": Step("cumulative")},
    ),
    Method(
        "sparsegpt",
        "Column by column, each time correcting the remaining columns; chooses its own mask",
        "SparseGPT, arXiv:2301.00774",
        {"update": Step("sparsegpt")},
    ),
    Method(
        "alps",
        "Weights and mask together by ADMM, then exact least squares on the mask",
        "ALPS, arXiv:2406.07831",
        {"update": Step("alps")},
    ),
    Method(
        "dsnot",
        "Wanda's mask, then swaps that lower the expected output error",
        "DSnoT, arXiv:2310.08915",
        {"score": Step("wanda"), "select": _TOP_ROW, "refine": Step("dsnot")},
    ),
    Method(
        "ria+r2_dsnot",
        "RIA's mask, then swaps by relative weights, with the best settings found for RIA",
        f"{_SYMMETRIC}, tables 5 and 10",
        {"score": Step("ria"), "select": _TOP_ROW, "refine": Step("r2_dsnot")},
    ),
    Method(
        "wanda+r2_dsnot",
        "Wanda's mask, then swaps by relative weights, with the best settings found for Wanda",
        f"{_SYMMETRIC}, tables 5 and 10",
        {
            "score": Step("wanda"),
            "select": _TOP_ROW,
            "refine": Step("r2_dsnot", {"relative_grow": False, "relative_prune": True, "gamma2": 1e-3}),
        },
    ),
    Method(
        "eggs_paper",
        "EGGS-PTP as read from its sources: circulant diagonals, B = 5, plain channel allocation",
        "EGGS-PTP, arXiv:2508.09471",
        {"score": Step("ria"), "permute": Step("allocate"), "select": Step("expander", {"B": 5})},
    ),
    Method(
        "eggs",
        "EGGS-PTP, best measured reading: best blocks, B chosen automatically, assignment refinement",
        "EGGS-PTP, arXiv:2508.09471, with this project's blocks and automatic B",
        {
            "score": Step("ria"),
            "permute": _ALLOCATE_AND_ASSIGN,
            "select": Step("expander", {"B": "auto", "diagonal": "best"}),
        },
    ),
    Method(
        "eggs+",
        "EGGS on permuted channels: mask and B by the layer error, drift corrected, weights solved for; no gradients",
        "This project, after EGGS-PTP, arXiv:2508.09471, ALPS, arXiv:2406.07831, and GPTAQ, arXiv:2504.02692",
        {
            "correct": Step("drift"),
            "score": Step("ria"),
            "permute": _ALLOCATE_AND_ASSIGN,
            "select": Step("top"),
            "update": UpdatePipeline((Step("reselect", {"rounds": 1}), Step("connect"))),
        },
    ),
    Method(
        "eggs-max",
        "eggs+ with ALPS, and every block tuned by gradients towards the dense one",
        "This project, after EGGS-PTP, arXiv:2508.09471, ALPS, arXiv:2406.07831, and EBFT, arXiv:2402.12419",
        {
            "correct": Step("drift"),
            "score": Step("ria"),
            "permute": _ALLOCATE_AND_ASSIGN,
            "update": UpdatePipeline((Step("alps"), Step("connect"))),
            "tune": Step("adam"),
        },
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
DEFAULT_METHOD = "eggs+"


def find_method(name: str) -> Method:
    """Return the method of a name: a row of the catalogue, or `a+b+...`, a row that further parts extend.

    Upper case, `-` and `_` do not matter; `eggs-plus` is `eggs+`. Each part after the first is a step (`wanda+dsnot`)
    or a row, whose steps replace those of the same slots (`magnitude+ria_cp`). An update step that continues from
    another one's weights (`pcg`, `connect`) is appended to the update steps that are there (`sparsegpt+pcg`).

    Raises:
        MethodError: There is no such method or step; the message names the nearest one.
    """
    rows = {_normalised(row_name): row for row_name, row in METHODS.items()}
    if row := rows.get(_normalised(name)):
        return row
    parts = _parts(name, rows)
    # The longest prefix that is a row: `wanda+r2_dsnot+sparsegpt` extends `wanda+r2_dsnot`, not `wanda`.
    prefixes = (count for count in range(len(parts), 0, -1) if _normalised("+".join(parts[:count])) in rows)
    count = next(prefixes, 1)
    prefix = "+".join(parts[:count])
    if _normalised(prefix) not in rows:
        raise MethodError(f"no method is named {name!r}{nearest(name, METHODS)}; `eggs methods` lists them")
    method = rows[_normalised(prefix)]
    for part in parts[count:]:
        method = _extended(method, part, rows)
    return method


def methods_for(pattern: AnyPattern) -> list[str]:
    """Return the names of the catalogue's methods that serve a pattern, in its order."""

    def serves(method: Method) -> bool:
        return all(not step.patterns or isinstance(pattern, step.patterns) for step in method.bind().bound_steps)

    return [name for name, method in METHODS.items() if serves(method)]


def _parts(name: str, rows: Mapping[str, Method]) -> list[str]:
    """Split a name at its plus signs, except for one that ends the name of a row: `eggs++pcg` is `eggs+` and `pcg`."""
    parts: list[str] = []
    for part in name.split("+"):
        if not part.strip() and parts and _normalised(f"{parts[-1]}+") in rows:
            parts[-1] = f"{parts[-1].strip()}+"
        else:
            parts.append(part)
    return parts


def _extended(method: Method, part: str, rows: Mapping[str, Method]) -> Method:
    """Return a method extended by a part of a name, a step or a row."""
    slots = {_normalised(step): (slot, step) for slot in SLOTS for step in names(slot)}
    former = {_normalised(old): slot for slot, steps in STEPS.items() for old in steps}
    key = _normalised(part)
    if key in former:
        key = _normalised(current_step(former[key], key))
    added: dict[str, Step | UpdatePipeline]
    source = ""
    if key in slots:
        slot, label = slots[key]
        title = f"{slot} by {label}"
        step = Step(label)
        added = {slot: joined(method.steps.get(slot), step) if slot == PIPELINE_SLOT else step}
    elif key in rows:
        row = rows[key]
        added = dict(row.steps)
        label = row.name
        title = row.title
        source = row.source
    else:
        known = sorted({step for _, step in slots.values()} | set(METHODS))
        raise MethodError(f"{part!r} is neither a step nor a method{nearest(part, known)}; `eggs methods` lists them")
    sources = [text for text in (method.source, source) if text]
    result = Method(f"{method.name}+{label}", f"{method.title}, then {title}", "; ".join(sources), method.steps)
    select = result.steps.get("select")
    if added.keys() == {"refine"} and isinstance(select, Step) and select.name == "top":
        # Refine steps swap weights within a row, so the mask that they start from has the same density in every row.
        added["select"] = select.with_options(group="row")
    return result.replace(**added)


def _normalised(name: str) -> str:
    """Return a name without case, `-` and `_`, and with `plus` for a `+` at its end."""
    plain = name.strip().lower().replace("-", "").replace("_", "")
    return f"{plain[:-1]}plus" if plain.endswith("+") else plain
