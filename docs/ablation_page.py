"""The page docs/ablation.md, from docs/results/ablation.json."""

import json
from pathlib import Path
from typing import Any

from accuracy_page import made_by, table_text, tables_of

RECORD = Path(__file__).parent / "results" / "ablation.json"
# What each method of the record is, beside the preset; the record has them by the names that `eggs prune` knows.
_MEANING = {
    "sparsegpt": "the yardstick",
    "alps": "ALPS on the unpermuted layer",
    "eggs+": "the preset",
    "eggs+ steps.correct.name=none": "without `drift`",
    "eggs+ steps.permute.name=none": "without permutation",
    "ria_cp+connect+drift": "without `reselect`: RIA's mask, connected by the layer loss",
    "ria_cp+reselect+pcg+drift steps.update.rounds=1": "without `connect`: no EGGS blocks",
    "eggs+ steps.update.rounds=3": "three rounds of `reselect` instead of one",
    "eggs++pcg": "with a longer reconstruction behind `connect`",
    "eggs+ steps.permute.passes=3": "three assignment passes instead of one",
    "ria_cp+pcg+drift": "RIA's mask, solved for, against drift",
    "ria_cp+pcg": "RIA's mask, solved for, and nothing else",
    "ria_cp+sparsegpt+pcg+drift": "SparseGPT's weights on RIA's mask, then solved for, against drift",
    "eggs+ orders=gather": "each activation an order of its own",
    "eggs+ steps.update.B=1": "one EGGS block a group instead of as many as lower the loss",
    "eggs+ steps.update.B=2": "two",
    "eggs+ steps.update.B=5": "five",
    "eggs-max": "the preset",
    "eggs-max steps.tune.name=none": "`eggs-max` without `tune`",
    "eggs-max steps.correct.name=none": "`eggs-max` without `drift`",
    "ria_cp+pcg+drift+adam": "`eggs-max` with RIA's mask instead of ALPS'",
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
