"""METHODS: every named method, one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from eggs_ptp.errors import MethodError
from eggs_ptp.method.chain import CHAINED, Links, joined
from eggs_ptp.method.method import Method
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import SLOTS, Step, names

_SYMMETRIC = "Symmetric Pruning, arXiv:2501.18980"
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
        "The same with squared norms, square root of the sum",
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
        "The same with squared norms, square root of the sum",
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
        "RIA with sums over samples of a tenth",
        f"{_SYMMETRIC}, equation 4",
        {"score": Step("stochria"), "select": _TOP_LAYER},
    ),
    Method(
        "wanda_variant",
        "Wanda, every row losing the same share of its score",
        "Wanda, arXiv:2306.11695, appendix",
        {"score": Step("wanda"), "select": Step("cumulative")},
    ),
    Method(
        "sparsegpt",
        "Column by column, each time correcting the columns to come; chooses its own mask",
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
    Method(
        "eggs+",
        "EGGS on permuted channels, mask and B by the layer loss, weights solved for, against drift; no gradients",
        "This project, after EGGS-PTP, arXiv:2508.09471, ALPS, arXiv:2406.07831, and GPTAQ, arXiv:2504.02692",
        {
            "correct": Step("drift"),
            "score": Step("ria"),
            "permute": _DEAL_ASSIGN,
            "select": Step("top"),
            "update": Links((Step("reselect", {"rounds": 1}), Step("connect"))),
        },
    ),
    Method(
        "eggs-max",
        "The same with ALPS, and every block tuned towards the dense model's",
        "This project, after EGGS-PTP, arXiv:2508.09471, ALPS, arXiv:2406.07831, and EBFT, arXiv:2402.12419",
        {
            "correct": Step("drift"),
            "score": Step("ria"),
            "permute": _DEAL_ASSIGN,
            "update": Links((Step("alps"), Step("connect"))),
            "tune": Step("adam"),
        },
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
DEFAULT_METHOD = "eggs+"


def find_method(name: str) -> Method:
    """The method of that name: a row, or `a+b+...`, a row with slots refilled by the steps that follow.

    `-` and `_` make no difference, nor do `eggs+` and `eggs-plus`. Each part after the first is a step
    (`wanda+dsnot`), or a row whose steps replace those that are there (`magnitude+ria_cp`). An update step that goes
    on from another's weights (`pcg`, `connect`) is appended to the update steps that are there (`sparsegpt+pcg`).

    Raises:
        MethodError: no such method or step; names the nearest.
    """
    rows = {_plain(row): method for row, method in METHODS.items()}
    if found := rows.get(_plain(name)):
        return found
    parts = _parts(name, rows)
    # The longest beginning that is a row: `wanda+r2_dsnot+sparsegpt` starts from the preset, not from `wanda`.
    count = next((n for n in range(len(parts), 0, -1) if _plain("+".join(parts[:n])) in rows), 1)
    first, others = "+".join(parts[:count]), parts[count:]
    if _plain(first) not in rows:
        raise MethodError(f"no method is named {name!r}{nearest(name, METHODS)}; `eggs methods` lists them")
    method = rows[_plain(first)]
    for part in others:
        method = _joined(method, part, rows)
    return method


def _parts(name: str, rows: Mapping[str, Method]) -> list[str]:
    """The name cut at its plus signs, but for one that ends the name of a row: `eggs++pcg` is `eggs+` and `pcg`."""
    parts: list[str] = []
    for part in name.split("+"):
        if not part.strip() and parts and _plain(f"{parts[-1]}+") in rows:
            parts[-1] = f"{parts[-1].strip()}+"
        else:
            parts.append(part)
    return parts


def _joined(method: Method, part: str, rows: Mapping[str, Method]) -> Method:
    steps = {_plain(step): (slot, step) for slot in SLOTS for step in names(slot)}
    added: dict[str, Step | Links]
    if _plain(part) in steps:
        slot, step = steps[_plain(part)]
        added, label, title, source = {slot: Step(step)}, step, f"{slot} by {step}", ""
        if slot == CHAINED:
            added = {slot: joined(method.steps.get(slot), Step(step))}
    elif _plain(part) in rows:
        row = rows[_plain(part)]
        added, label, title, source = dict(row.steps), row.name, row.title, row.source
    else:
        known = sorted({step for _, step in steps.values()} | set(METHODS))
        raise MethodError(f"{part!r} is neither a step nor a method{nearest(part, known)}; `eggs methods` lists them")
    sources = [source for source in (method.source, source) if source]
    result = Method(f"{method.name}+{label}", f"{method.title}, then {title}", "; ".join(sources), method.steps)
    select = result.steps.get("select")
    if added.keys() == {"refine"} and isinstance(select, Step) and select.name == "top":
        added["select"] = select.with_options(group="row")  # swaps go on within a row, so rows are compared
    return result.replace(**added)


def _plain(name: str) -> str:
    plain = name.strip().lower().replace("-", "").replace("_", "")
    return f"{plain[:-1]}plus" if plain.endswith("+") else plain
