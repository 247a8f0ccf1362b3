"""The page docs/b-sweep.md, from docs/results/b-sweep.json."""

import json
import re
from pathlib import Path
from typing import Any

from accuracy_page import provenance

Excess = dict[tuple[int | None, str], float]  # by B (None: automatic) and kind of block

RECORD = Path(__file__).parents[2] / "docs" / "results" / "b-sweep.json"
_KINDS = ("best", "circulant", "staircase")
_METHODS = {
    "eggs": "kept weights unchanged",
    "ria_cp+connect+pcg": "kept weights solved for",
    "ria_cp+connect+pcg+adam": "kept weights solved for, and blocks tuned",
}
_HEAD = """# How many EGGS blocks: B from none to all

<!-- Written by tools/docs/make_pages.py from docs/results/b-sweep.json. -->

Excess ln(perplexity / dense perplexity) at 2:4 by the number B of diagonal blocks in each group, for three kinds of block
and three sizes of Llama, one calibration seed. Each activation has its own permutation (`permutation = "gather"`), so that
only B and kind differ. If fewer than B blocks of 4 rows fit, all rows belong to blocks: from B = 16 on with 64 rows, from
B = 32 on with 128. *auto* is the B that the method chooses itself, matrix by matrix. Two of the models with two seeds, with
degrees and spectra of the masks: [connectivity](findings/connectivity.md).
"""


def b_sweep() -> str:
    """Return the page: a table for each model and method, and findings."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = [_HEAD]
    sweeps: dict[tuple[str, str], Excess] = {}
    for model_name, model in record["models"].items():
        for method, description in _METHODS.items():
            if not (excess := _excess(record, model_name, method)):
                continue
            sweeps[model_name, method] = excess
            numbers = sorted({number for number, _ in excess if number is not None})
            kinds = [kind for kind in _KINDS if (0, kind) in excess or (numbers[-1], kind) in excess]
            parts.append(f"## {model_name}, {description} (`{method}`)\n\nDense: {model['dense']:.2f}.\n")
            parts += [f"| B | {' | '.join(kinds)} |", f"|--:|{'--:|' * len(kinds)}"]
            for number in numbers:
                parts.append(f"| {number} | {' | '.join(f'{excess[number, kind]:.3f}' for kind in kinds)} |")
            parts.append(f"| auto | {excess[None, 'best']:.3f} |{' |' * (len(kinds) - 1)}\n")
    parts.append("## Findings\n\n" + _findings(sweeps) + "\n")
    return "\n".join([*parts, "## How it was measured\n", provenance(record)])


def _excess(record: dict[str, Any], model: str, method: str) -> Excess:
    excess: Excess = {}
    for row in record["rows"]:
        name, *settings = row["method"].split()
        if (row["model"], name) == (model, method):
            options = dict(re.findall(r"(B|diagonal)=(\S+)", " ".join(settings)))
            number = int(options["B"]) if "B" in options else None
            excess[number, options.get("diagonal", "best")] = row["excess"]
    return excess


def _findings(sweeps: dict[tuple[str, str], Excess]) -> str:
    lines = []
    for (model, method), excess in sweeps.items():
        fixed = {key: value for key, value in excess.items() if key[0] is not None}
        number, kind = min(fixed, key=fixed.__getitem__)
        lines.append(
            f"- {model}, {_METHODS[method]}: lowest {fixed[number, kind]:.3f} at B = {number} ({kind}), chosen after the "
            f"fact; {excess[0, 'best']:.3f} without blocks; {excess[None, 'best']:.3f} with the automatic B."
        )
    return "\n".join(lines)
