"""The page docs/ablation.md, from docs/results/ablation.json."""

import json
from pathlib import Path
from typing import Any

from accuracy_page import made_by, table_text, tables_of

RECORD = Path(__file__).parent / "results" / "ablation.json"
_P = " steps.permute.passes=3"
# What each method of the record is, beside the preset; the record has them by the names that `eggs prune` knows.
_MEANING = {
    "sparsegpt": "the yardstick",
    "alps": "ALPS on the unpermuted layer",
    "eggs+": "the preset",
    f"ria_cp+reselect+connect+pcg{_P}": "without `drift`",
    "ria+reselect+connect+pcg+drift": "without permutation",
    f"ria_cp+connect+pcg+drift{_P}": "without `reselect`: RIA's mask, connected by the layer loss",
    f"ria_cp+reselect+pcg+drift{_P}": "without `connect`: no EGGS blocks",
    f"ria_cp+reselect+connect+drift{_P}": "without the last `pcg`",
    f"ria_cp+pcg+drift{_P}": "RIA's mask, solved for, against drift",
    f"ria_cp+pcg{_P}": "RIA's mask, solved for, and nothing else",
    f"ria_cp+sparsegpt+pcg+drift{_P}": "SparseGPT's weights on RIA's mask, then solved for, against drift",
    "eggs+ steps.permute.passes=1": "one assignment pass instead of three",
    "eggs+ orders=gather": "each activation an order of its own",
    "eggs+ steps.update.B=1": "one EGGS block a group instead of as many as lower the loss",
    "eggs+ steps.update.B=2": "two",
    "eggs+ steps.update.B=5": "five",
    "eggs-max steps.tune.name=none": "`eggs-max` without `tune`",
    f"ria_cp+alps+connect+pcg+adam{_P}": "`eggs-max` without `drift`",
    f"ria_cp+pcg+drift+adam{_P}": "`eggs-max` with RIA's mask instead of ALPS'",
    "eggs-max steps.tune.divergence=0": "`eggs-max` without the predictions of the last block",
    "wanda+adam": "Wanda's mask, tuned, and nothing else",
}


def ablation() -> str:
    """The page; every row that the record has, in the order of the record's models."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = [
        "# What each ingredient of the presets gives\n",
        "<!-- Written by docs/make_pages.py from docs/results/ablation.json. -->\n",
        "Read as [accuracy](accuracy.md), by the same benchmark; rows from most excess to least.\n",
    ]
    tables = tables_of(record)
    named = [method for method in _MEANING if any(method in table for table in tables.values())]
    parts += ["| row | what it is |", "|---|---|", *(f"| {method} | {_MEANING[method]} |" for method in named), ""]
    for (model, pattern), table in tables.items():
        dense = record["models"][model]["dense"]
        parts += [f"## {model}, {pattern}\n", f"Dense: {dense:.2f}.\n", table_text(table, record)]
    return "\n".join([*parts, "Made by\n", made_by(record)])
