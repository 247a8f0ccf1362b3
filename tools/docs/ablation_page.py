"""The page docs/ablation.md, from docs/results/ablation.json."""

import json
from pathlib import Path
from typing import Any

from accuracy_page import provenance, table_text, tables_of

RECORD = Path(__file__).parents[2] / "docs" / "results" / "ablation.json"
# What each method of the record is, compared with the preset; names are those that `eggs prune` accepts.
_DESCRIPTIONS = {
    "sparsegpt": "the reference for shares",
    "alps": "ALPS on the layer without permutation",
    "eggs+": "the preset",
    "eggs+ steps.correct.name=none": "without `drift`",
    "eggs+ steps.permute.name=none": "without permutation",
    "ria_cp+connect+drift": "without `reselect`: RIA's mask, connected by the layer loss",
    "ria_cp+reselect+pcg+drift steps.update.rounds=1": "without `connect`: no EGGS blocks",
    "eggs+ steps.update.rounds=3": "three rounds of `reselect` instead of one",
    "eggs++pcg": "with a longer reconstruction after `connect`",
    "eggs+ steps.permute.passes=3": "three assignment passes instead of one",
    "ria_cp+pcg+drift": "RIA's mask, kept weights solved for, with `drift`",
    "ria_cp+pcg": "RIA's mask, kept weights solved for",
    "ria_cp+sparsegpt+pcg+drift": "SparseGPT's weights on RIA's mask, then solved for, with `drift`",
    "eggs+ permutation=gather": "a separate permutation for each activation",
    "eggs+ steps.update.B=1": "one EGGS block per group instead of as many as lower the loss",
    "eggs+ steps.update.B=2": "two",
    "eggs+ steps.update.B=5": "five",
    "eggs-max": "the preset",
    "eggs-max steps.tune.name=none": "`eggs-max` without `tune`",
    "eggs-max steps.correct.name=none": "`eggs-max` without `drift`",
    "ria_cp+pcg+drift+adam": "`eggs-max` with RIA's mask instead of ALPS's",
    "eggs-max steps.tune.divergence=0": "`eggs-max` without the predictions of the last block in its loss",
    "wanda+adam": "Wanda's mask, blocks tuned, nothing else",
}


def ablation() -> str:
    """Return the page, with the models in the order of the record."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    tables = tables_of(record)
    recorded = {method for table in tables.values() for method in table}
    parts = [
        "# What each ingredient of the presets contributes\n",
        "<!-- Written by tools/docs/make_pages.py from docs/results/ablation.json. -->\n",
        "Measured by the same benchmark as [accuracy](accuracy.md), with the same columns; highest excess first.\n",
        "| row | what it is |",
        "|---|---|",
        *(f"| {method} | {text} |" for method, text in _DESCRIPTIONS.items() if method in recorded),
        "",
    ]
    for (model, pattern), table in tables.items():
        dense = record["models"][model]["dense"]
        parts += [f"## {model}, {pattern}\n", f"Dense: {dense:.2f}.\n", table_text(table, record)]
    return "\n".join([*parts, "## How it was measured\n", provenance(record)])
