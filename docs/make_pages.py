"""Write the pages, and the part of README.md, that come from the code and the records: `python docs/make_pages.py`."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import typer
from ablation_page import ablation
from accuracy_page import accuracy, shares
from b_sweep_page import b_sweep
from bounds_page import bounds
from compatibility_page import compatibility
from connectivity_page import connectivity
from families_page import families
from large_page import large
from quantised_page import quantised
from reproduction_page import reproduction
from scaling_page import scaling
from trust_page import trust

from eggs_ptp.cli.program import app
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS
from eggs_ptp.method.step import SLOTS

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
_README_SHARES = re.compile(r"(?<=<!-- shares: by docs/make_pages.py -->\n).*?(?=<!-- end of shares -->)", re.S)
_COMMAND_LINE = """# The command line

<!-- Written by docs/make_pages.py from the program's help. -->

`eggs VERB --help` prints the same. `--debug`, anywhere, shows where in the code an error arose; `--version` the
version. Exit codes: 0, 1 (`verify` found faults), 2 (an error, said in one line on stderr, or runs of `compare` that
failed), 130 and 143 (interrupted by Ctrl-C and by SIGTERM). With `--json`, stdout is one JSON document, or empty where an error left nothing to print.
"""


_METHODS = """# Methods

<!-- Written by docs/make_pages.py from the catalogue. -->

A method is a row of steps. `eggs methods NAME` shows the formula, options and defaults of each; any option can be
changed with `--set steps.SLOT.OPTION=VALUE`, any step replaced with `--set steps.SLOT=NAME`. Names join with `+`:
`wanda+dsnot` is the row `wanda` refined by `dsnot`, `magnitude+sparsegpt` updates the weights that magnitude keeps.
An update step that goes on from another's weights (`reselect`, `connect`, `pcg`) is appended to what is there, as in
`sparsegpt+pcg`; one that begins anew (`sparsegpt`, `alps`) takes its place. In a recipe a chain is a list,
`update = ["sparsegpt", "pcg"]` or one `[[steps.update]]` table a step. `-` and `_` are the same.

| name | what it does | statistics | steps | source |
|---|---|---|---|---|
"""


_READINGS = """# EGGS-PTP: the open points and what each reading costs

<!-- Written by docs/make_pages.py from docs/results/eggs-readings-2of4.json. -->

EGGS-PTP (arXiv:2508.09471) has no public code. What its sources leave open is an option here, with the likeliest
reading as the step's default; `eggs_paper` is that reading, `eggs` the best measured one that leaves kept weights as
they were.

| open point | readings (`steps.select.` unless said) | default of the step |
|---|---|---|
| height of a block | `block`: `square` (M rows) or `short` (M/N rows, each column once) | `square` |
| which entries a diagonal block keeps | `diagonal`: `circulant` band, `staircase`, `forced` main diagonal and the best others, `block` diagonal of squares, and this project's `best`: the doubly regular block that retains most score | `circulant` |
| where the band starts | `offset`: 0 or `best` | 0 |
| relative row importance | `rri`: `activation`, `weight`, or the `score` itself | `activation` |
| deal | `steps.permute.dealing`: `serpentine` or `round_robin` | `serpentine` |
| assignment after the deal | `steps.permute.assign` | off in `eggs_paper`, on in `ria_cp` and `eggs` |
| B | `B`: a number, or this project's `auto`: the most blocks that lose at most 0.1 % of the retained score | 5; `auto` in `eggs` |

## Measured

A trained 0.66M-parameter Llama (tinystories-656k, rows of 128 to 384 inputs), 2:4, three calibration seeds, story-by-story
perplexity of its first 250 held-out stories. Layers this narrow are the hardest case for blocks: one is 3 % of 128 rows.

"""


_FINDING = """## What follows

- Channel permutation is worth more than anything else here: RIA alone is far behind RIA with it, and most so with one
  order per matrix (`share = "matrix"`).
- Fixed diagonals cost more the more blocks there are; circulant, staircase, forced and block diagonals behave alike.
- The best doubly regular blocks keep the same connections (every input at least B N) at a cost within seed noise for
  small B, so they are the default of `eggs`. At no B do they lower perplexity by more than seed noise.
- `auto` takes blocks only where they lose little score, none in some matrices. On this model it costs nothing
  measurable. On the built-in model it does cost: over three seeds 50.4 on average against 48.9 without blocks (48.8,
  51.0, 51.5 against 48.6, 50.4, 47.8), so a small loss of score is no proof of a small loss of perplexity.
"""


def pages() -> dict[Path, str]:
    """Every generated page."""
    return {
        DOCS / "command-line.md": command_line(),
        DOCS / "methods.md": methods(),
        DOCS / "eggs-readings.md": readings(),
        DOCS / "compared.md": compared(),
        DOCS / "accuracy.md": accuracy(),
        DOCS / "ablation.md": ablation(),
        DOCS / "b-sweep.md": b_sweep(),
        DOCS / "compatibility.md": compatibility(),
        DOCS / "quantised.md": quantised(),
        DOCS / "families.md": families(),
        DOCS / "large.md": large(),
        DOCS / "scaling.md": scaling(),
        DOCS / "findings" / "bounds.md": bounds(),
        DOCS / "trust.md": trust(),
        DOCS / "reproduction.md": reproduction(),
        DOCS / "findings" / "connectivity.md": connectivity(),
        README: _README_SHARES.sub(lambda _found: shares(), README.read_text(encoding="utf-8")),
    }


_COMPARED = """# Methods compared, on two small models

<!-- Written by docs/make_pages.py from docs/results/compare-*.json. -->

Perplexity, mean ± standard deviation over three calibration seeds (for StochRIA in Table 4 over three draws of its
samples), and the difference to dense. Both models are small and trained to their capacity: they lose far more than a
large model does, so orders can be read off, sizes cannot. A dash: permutation, and so EGGS-PTP, is defined for N:M
patterns only. Its rows choose masks with one channel order for the matrices that read the same activation, and fold
none into the weights (`orders = "mask"`).
"""

_ORDER = """## What agrees with the papers' ordering, and what does not

- Agrees: RIA is a little better than Wanda row for row (2:4, 4:8) and clearly better than magnitude; SparseGPT, which
  updates weights, beats every method that does not, permuted EGGS-PTP included; at 2:4 and 4:8 permuted EGGS-PTP beats
  RIA by far, nearly all of it by the permutation (docs/eggs-readings.md).
- Agrees only in part: StochRIA stays within a few per cent of RIA in the paper's 7B models; with matrices of 64 to 384
  rows a tenth is 6 to 38 samples, and it is 5 to 12 % behind. Wanda is as good as RIA at 50 to 70 % on the built-in
  model when both are compared over the whole layer, as Table 4 does.
- On the built-in model at 50, 60 and 70 %, each method with its own defaults (Wanda within rows, RIA over the layer), the
  paper's order holds for magnitude, Wanda and RIA, from worst to best: RIA is 2, 4 and 5 % below Wanda, where Table 4 has
  12, 32 and 68 % for LLaMA2-7B, and the lead grows with sparsity in both. StochRIA falls behind RIA faster, by 6, 10 and
  16 %; the paper has it about level up to 60 %, and at 70 % 6 and 20 % behind for LLaMA2-7B and 13B but ahead for the
  other two models. SparseGPT, which the paper's tables leave out, is far ahead of all. R2-DSnoT is no better than DSnoT
  here, and at 60 % both are at about three times the perplexity of their start, where Table 5 has changes of 10 % at most
  for starts by Wanda and RIA.
- Does not agree: DSnoT and R2-DSnoT make things much worse here. Their 50 cycles and threshold are tuned to rows of 4096
  and more; on rows of 128 they swap most of a row. The public DSnoT code does so too on this model (packed windows: 838 at
  50 %, 1004 at 2:4, where it also loses the pattern; ours keeps it).
"""


def compared() -> str:
    """The recorded comparisons, and what they say."""
    parts = [_COMPARED]
    for path in sorted((DOCS / "results").glob("compare-*.json"), reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        cells = {(tuple(cell["row"]), cell["column"]): cell for cell in record["table"]}
        rows = list(dict.fromkeys(row for row, _ in cells))
        heads = [*record["heads"], *record["columns"]]
        lines = [f"## {record['title'] or 'Eight methods, ' + record['model'].split('/')[-1]}\n"]
        lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(record["heads"]) + "---:|" * len(record["columns"])]
        dense = [f"{record['dense']['perplexity']:.2f}"] * len(record["columns"])
        lines.append(f"| {' | '.join(['dense', *[''] * (len(record['heads']) - 1), *dense])} |")
        for row in rows:
            found = [_cell(cells[row, column]) for column in record["columns"]]
            lines.append(f"| {' | '.join([*row, *found])} |")
        lines.append(f"\nMade by `{record['command']}`.\n")
        parts.append("\n".join(lines))
    return "\n".join([*parts, _ORDER])


def _cell(cell: dict[str, Any]) -> str:
    if cell["perplexity"] is None:
        return "-"
    spread = f" ± {cell['sd']:.2f}" if cell["sd"] is not None else ""
    return f"{cell['perplexity']:.2f}{spread} ({cell['difference']:+.2f})"


def readings() -> str:
    """EGGS-PTP's open points, with the record's rows."""
    record = json.loads((DOCS / "results" / "eggs-readings-2of4.json").read_text(encoding="utf-8"))
    lines = ["| row | perplexity | standard deviation | B |", "|---|---:|---:|---|"]
    lines.append(f"| dense | {record['dense']:.2f} | | |")
    for label, found in record["rows"].items():
        blocks = f"{min(found['B'])} to {max(found['B'])}" if found["B"] else ""
        mean, spread = statistics.mean(found["perplexity"]), statistics.stdev(found["perplexity"])
        label = label.replace("ria_cp", "ria_cp, which is eggs at B=0", 1)
        lines.append(f"| {label} | {mean:.2f} | {spread:.2f} | {blocks} |")
    found = record["versions"]
    made = f"Made by `{record['command']}` (torch {found['torch']}, transformers {found['transformers']})."
    return _READINGS + "\n".join(lines) + f"\n\n{made}\n\n{_FINDING}"


def methods() -> str:
    """One row a method."""
    lines = []
    for method in METHODS.values():
        bound = method.bind()
        steps = []
        for slot in SLOTS:
            step = method.steps.get(slot)
            for link in getattr(step, "links", filter(None, (step,))):
                options = ", ".join(f"{key} = {value}" for key, value in link.options.items())
                steps.append(f"{slot} `{link.name}`{f' ({options})' if options else ''}")
        name = f"`{method.name}`{' (default)' if method.name == DEFAULT_METHOD else ''}"
        needs = ", ".join(sorted(bound.statistics)) or "none"
        lines.append(f"| {name} | {method.title} | {needs} | {'; '.join(steps)} | {method.source} |")
    return _METHODS + "\n".join(lines) + "\n"


def command_line() -> str:
    """Every verb with its options."""
    program: Any = typer.main.get_command(app)
    return _COMMAND_LINE + "".join(_verb(name, command) for name, command in program.commands.items())


def _verb(name: str, command: Any) -> str:
    usage = " ".join(["eggs", name, *command.collect_usage_pieces(_context(command))])
    lines = [
        f"\n## eggs {name}\n",
        f"{_plain(command.help)}\n",
        f"```\n{usage}\n```\n",
        "| option | meaning |",
        "|---|---|",
    ]
    for each in command.params:
        if each.param_type_name == "option" and "--help" not in each.opts:
            names = ", ".join(f"`{option}`" for option in [*each.opts, *each.secondary_opts])
            lines.append(f"| {names} | {_plain(each.help)} |")
    return "\n".join(lines) + "\n"


def _context(command: Any) -> Any:
    return command.make_context(command.name, [], resilient_parsing=True)


def _plain(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
