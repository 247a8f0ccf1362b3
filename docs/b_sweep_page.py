"""The page docs/b-sweep.md, from docs/results/b-sweep.json."""

import json
import re
from pathlib import Path
from typing import Any

from accuracy_page import made_by

RECORD = Path(__file__).parent / "results" / "b-sweep.json"
_KINDS = ("best", "circulant", "staircase")
_METHODS = {
    "eggs": "kept weights as they were",
    "ria_cp+connect+pcg": "kept weights solved for",
    "ria_cp+connect+pcg+adam": "kept weights solved for, and blocks tuned",
}
_HEAD = """# How many EGGS blocks: B from none to all

<!-- Written by docs/make_pages.py from docs/results/b-sweep.json. -->

Excess ln(perplexity / dense) at 2:4 by the number B of diagonal blocks in each group, for three kinds of block on three
sizes of Llama, one calibration seed; each activation has an order of its own (`orders = "gather"`), so that B and kind
are all that differs. Where fewer than B blocks of 4 rows fit, all rows are blocks: with 64 rows from B = 16 on, with 128
from B = 32 on. *auto* is the B that the method comes to by itself, matrix by matrix. Two seeds of two of the models,
beside degrees and spectra of the masks: [connectivity](findings/connectivity.md).
"""


def b_sweep() -> str:
    """The page: a table for each model and method, and what can be read off."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    parts, found = [_HEAD], {}
    for model, facts in record["models"].items():
        for method, meaning in _METHODS.items():
            if not (cells := _cells(record, model, method)):
                continue
            numbers = sorted({number for number, _ in cells if number is not None})
            parts.append(f"## {model}, {meaning} (`{method}`)\n\nDense: {facts['dense']:.2f}.\n")
            kinds = [kind for kind in _KINDS if (0, kind) in cells or (numbers[-1], kind) in cells]
            parts += [f"| B | {' | '.join(kinds)} |", f"|--:|{'--:|' * len(kinds)}"]
            parts += [
                f"| {number} | {' | '.join(f'{cells[number, kind]:.3f}' for kind in kinds)} |" for number in numbers
            ]
            parts.append(f"| auto | {cells[None, 'best']:.3f} |{' |' * (len(kinds) - 1)}\n")
            found[model, method] = cells
    parts.append("## What it says\n\n" + _reading(found) + "\n")
    return "\n".join([*parts, "## How it was made\n", made_by(record)])


def _cells(record: dict[str, Any], model: str, method: str) -> dict[tuple[int | None, str], float]:
    """Excess by B (None: automatic) and kind."""
    cells: dict[tuple[int | None, str], float] = {}
    for row in record["rows"]:
        name, *settings = row["method"].split()
        if (row["model"], name) == (model, method):
            given = dict(re.findall(r"(B|diagonal)=(\S+)", " ".join(settings)))
            cells[int(given["B"]) if "B" in given else None, given.get("diagonal", "best")] = row["excess"]
    return cells


def _reading(found: dict[tuple[str, str], dict[tuple[int | None, str], float]]) -> str:
    lines = []
    for (model, method), cells in found.items():
        (number, kind), best = min(
            ((at, value) for at, value in cells.items() if at[0] is not None), key=lambda c: c[1]
        )
        none, auto = cells[0, "best"], cells[None, "best"]
        lines.append(
            f"- {model}, {_METHODS[method]}: least {best:.3f} at B = {number} ({kind}), picked afterwards; {none:.3f} "
            f"without blocks; {auto:.3f} with the automatic B."
        )
    return "\n".join(lines)
