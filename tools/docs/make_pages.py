"""Write the generated pages in docs/ and the generated part of README.md: `python tools/docs/make_pages.py`."""

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from ablation_page import ablation
from accuracy_page import OutdatedRecordError, accuracy, shares
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
from eggs_ptp.method.update_pipeline import UpdatePipeline

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
_README_SHARES = re.compile(r"(?<=<!-- shares: by tools/docs/make_pages.py -->\n).*?(?=<!-- end of shares -->)", re.S)
_COMMAND_LINE = """# The command line

<!-- Written by tools/docs/make_pages.py from the program's help. -->

`eggs VERB --help` prints the same. `--debug`, in any position, prints the traceback of an error; `--version` prints the
version. Exit codes: 0; 1 (`verify` found faults); 2 (an error, reported in one line on stderr, or failed runs of
`compare`); 130 and 143 (interrupted by Ctrl-C and by SIGTERM). With `--json`, stdout is one JSON document, or empty after
an error.
"""


_METHODS = """# Methods

<!-- Written by tools/docs/make_pages.py from the catalogue. -->

A method is a row of steps. `eggs methods NAME` shows the formula, options and defaults of each step. Any option can be
changed with `--set steps.SLOT.OPTION=VALUE`, and any step replaced with `--set steps.SLOT=NAME`. Names can be joined with
`+`: `wanda+dsnot` is `wanda` with its mask refined by `dsnot`; `magnitude+sparsegpt` updates the weights that magnitude
keeps. An update step that starts from the weights of the previous one (`reselect`, `connect`, `pcg`) is appended to the
method's update steps, as in `sparsegpt+pcg`; one that starts from the dense weights (`sparsegpt`, `alps`) replaces them.
In a recipe, several update steps are a list, `update = ["sparsegpt", "pcg"]`, or one `[[steps.update]]` table per step.
In names, `-` and `_` are equivalent.

| name | what it does | statistics | steps | source |
|---|---|---|---|---|
"""


_READINGS = """# EGGS-PTP: open points, and what each reading costs

<!-- Written by tools/docs/make_pages.py from docs/results/eggs-readings-2of4.json. -->

EGGS-PTP (arXiv:2508.09471) has no public code. What its sources leave open is an option here, and the default of each
option is the likeliest reading. `eggs_paper` is that reading; `eggs` is the best one measured here that leaves kept weights
unchanged.

| open point | readings (options of `steps.select` unless noted) | default of the step |
|---|---|---|
| height of a diagonal block | `block`: `square` (M rows) or `short` (M/N rows, each column once) | `square` |
| which weights a diagonal block keeps | `diagonal`: `circulant` band, `staircase`, `forced` main diagonal plus the best others, `block` diagonal of squares, and this project's `best`: the doubly regular block that retains the most score | `circulant` |
| where the band starts | `offset`: 0 or `best` | 0 |
| relative row importance | `rri`: `activation`, `weight`, or the `score` itself | `activation` |
| channel allocation | `steps.permute.allocation`: `serpentine` or `round_robin` | `serpentine` |
| assignment after the allocation | `steps.permute.assign` | off in `eggs_paper`, on in `ria_cp` and `eggs` |
| B | `B`: a number, or this project's `auto`: as many blocks as lose at most 0.1 % of the retained score | 5; `auto` in `eggs` |

## Measured

A trained Llama with 0.66M parameters (tinystories-656k, rows of 128 to 384 inputs), 2:4, three calibration seeds,
document-by-document perplexity of its first 250 held-out stories. Layers this narrow are the hardest case for diagonal
blocks: one block is 3 % of 128 rows.

"""


_FINDING = """## Findings

- Channel permutation matters more than everything else here: RIA alone is far worse than RIA with it, and the difference
  is largest with one permutation per matrix (`share = "matrix"`).
- The cost of fixed diagonals grows with the number of blocks; circulant, staircase, forced and block diagonals cost about
  the same.
- The best doubly regular blocks guarantee the same connections (at least B N for every input). For small B they cost
  nothing beyond seed noise, so they are the default of `eggs`. At no B do they lower the perplexity by more than seed noise.
- `auto` uses blocks only where they lose little score, in some matrices none. On this model it has no measurable cost. On
  the built-in model it has one: over three seeds the mean perplexity is 50.4, against 48.9 without blocks (48.8, 51.0, 51.5
  against 48.6, 50.4, 47.8), so a small loss of score does not guarantee a small loss of perplexity.
"""

# Row labels of the record, and what the page calls them.
_READING_LABELS = {"an order per matrix": "one permutation per matrix", "ria_cp": "ria_cp, which is eggs at B=0"}


def compared() -> str:
    """Return the recorded comparisons and what they show."""
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
            numbers = [_cell(cells[row, column]) for column in record["columns"]]
            lines.append(f"| {' | '.join([*row, *numbers])} |")
        lines.append(f"\nMeasured by `{record['command']}`.\n")
        parts.append("\n".join(lines))
    return "\n".join([*parts, _ORDERING])


_COMPARED = """# Methods compared, on two small models

<!-- Written by tools/docs/make_pages.py from docs/results/compare-*.json. -->

Perplexity, mean ± standard deviation over three calibration seeds (for StochRIA in Table 4 over three draws of its
samples), and in brackets the difference to dense. Both models are small and trained to their capacity, so they lose far
more than a large model does: the ordering of methods is informative, the sizes of differences are not. A dash: channel
permutation, and so EGGS-PTP, is defined for N:M patterns only. EGGS-PTP chooses its masks with one channel permutation for
all matrices that share an input activation, and no permutation is folded into the weights (`permutation = "mask"`).
"""

_ORDERING = """## Where the ordering agrees with the papers, and where it does not

- Agrees: RIA is a little better than Wanda when both compare weights within rows (2:4, 4:8), and clearly better than
  magnitude; SparseGPT, which updates weights, beats every method that does not, EGGS-PTP with permutation included; at 2:4
  and 4:8 EGGS-PTP with permutation is far better than RIA, nearly all of it due to the permutation
  ([readings](eggs-readings.md)).
- Agrees in part: StochRIA is within a few per cent of RIA on the paper's 7B models. With matrices of 64 to 384 rows a
  tenth is 6 to 38 samples, and it is 5 to 12 % worse. On the built-in model Wanda is as good as RIA at 50 to 70 % if both
  compare weights over the whole layer, as Table 4 does.
- On the built-in model at 50, 60 and 70 %, each method with its own defaults (Wanda within rows, RIA over the layer), the
  paper's ordering of magnitude, Wanda and RIA holds, from worst to best: RIA is 2, 4 and 5 % below Wanda, where Table 4 has
  12, 32 and 68 % for LLaMA2-7B, and in both the lead grows with the sparsity. StochRIA falls behind RIA faster, by 6, 10
  and 16 %; in the paper it is about equal up to 60 %, and at 70 % 6 and 20 % worse for LLaMA2-7B and 13B but better for the
  other two models. SparseGPT, which the paper's tables do not contain, is far better than all. R2-DSnoT is not better than
  DSnoT here, and at 60 % both have about three times the perplexity of the mask they start from, where Table 5 shows
  changes of at most 10 % for masks of Wanda and RIA.
- Does not agree: DSnoT and R2-DSnoT make the perplexity much worse here. Their 50 cycles and threshold are tuned to rows of
  4096 weights and more; on rows of 128 they swap most of a row. The public DSnoT code does the same on this model (packed
  windows: 838 at 50 %, 1004 at 2:4, where it also violates the pattern; the implementation here does not).
"""


def _cell(cell: dict[str, Any]) -> str:
    if cell["perplexity"] is None:
        return "-"
    deviation = f" ± {cell['sd']:.2f}" if cell["sd"] is not None else ""
    return f"{cell['perplexity']:.2f}{deviation} ({cell['difference']:+.2f})"


def readings() -> str:
    """Return EGGS-PTP's open points and the measured readings."""
    record = json.loads((DOCS / "results" / "eggs-readings-2of4.json").read_text(encoding="utf-8"))
    lines = ["| row | perplexity | standard deviation | B |", "|---|---:|---:|---|"]
    lines.append(f"| dense | {record['dense']:.2f} | | |")
    for label, row in record["rows"].items():
        blocks = f"{min(row['B'])} to {max(row['B'])}" if row["B"] else ""
        mean = statistics.mean(row["perplexity"])
        deviation = statistics.stdev(row["perplexity"])
        for recorded, shown in _READING_LABELS.items():
            label = label.replace(recorded, shown, 1)
        lines.append(f"| {label} | {mean:.2f} | {deviation:.2f} | {blocks} |")
    versions = record["versions"]
    command = f"Measured by `{record['command']}` (torch {versions['torch']}, transformers {versions['transformers']})."
    return _READINGS + "\n".join(lines) + f"\n\n{command}\n\n{_FINDING}"


def methods() -> str:
    """Return the catalogue, one row per method."""
    lines = []
    for method in METHODS.values():
        steps = []
        for slot in SLOTS:
            if (slot_step := method.steps.get(slot)) is None:
                continue
            for step in slot_step.steps if isinstance(slot_step, UpdatePipeline) else (slot_step,):
                options = ", ".join(f"{option} = {value}" for option, value in step.options.items())
                steps.append(f"{slot} `{step.name}`{f' ({options})' if options else ''}")
        name = f"`{method.name}`{' (default)' if method.name == DEFAULT_METHOD else ''}"
        statistics_names = ", ".join(sorted(method.bind().statistics)) or "none"
        lines.append(f"| {name} | {method.title} | {statistics_names} | {'; '.join(steps)} | {method.source} |")
    return _METHODS + "\n".join(lines) + "\n"


def command_line() -> str:
    """Return every verb with its options."""
    program: Any = typer.main.get_command(app)
    return _COMMAND_LINE + "".join(_verb(name, command) for name, command in program.commands.items())


def _verb(name: str, command: Any) -> str:
    context = command.make_context(command.name, [], resilient_parsing=True)
    usage = " ".join(["eggs", name, *command.collect_usage_pieces(context)])
    lines = [
        f"\n## eggs {name}\n",
        f"{_one_line(command.help)}\n",
        f"```\n{usage}\n```\n",
        "| option | meaning |",
        "|---|---|",
    ]
    for parameter in command.params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts and not parameter.hidden:
            names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
            lines.append(f"| {names} | {_one_line(parameter.help)} |")
    return "\n".join(lines) + "\n"


def _one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def readme() -> str:
    """Return README.md with today's table of shares."""
    return _README_SHARES.sub(lambda _match: shares(), README.read_text(encoding="utf-8"))


PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "command-line.md": command_line,
    DOCS / "methods.md": methods,
    DOCS / "eggs-readings.md": readings,
    DOCS / "compared.md": compared,
    DOCS / "accuracy.md": accuracy,
    DOCS / "ablation.md": ablation,
    DOCS / "b-sweep.md": b_sweep,
    DOCS / "compatibility.md": compatibility,
    DOCS / "quantised.md": quantised,
    DOCS / "families.md": families,
    DOCS / "large.md": large,
    DOCS / "scaling.md": scaling,
    DOCS / "findings" / "bounds.md": bounds,
    DOCS / "trust.md": trust,
    DOCS / "reproduction.md": reproduction,
    DOCS / "findings" / "connectivity.md": connectivity,
    README: readme,
}


def main() -> int:
    """Write all pages; return 1 if one could not be built."""
    failed = False
    for path, build in PAGES.items():
        try:
            text = build()
        except OutdatedRecordError as error:
            print(f"{path.relative_to(DOCS.parent)} was not written: {error}", file=sys.stderr)
            failed = True
        else:
            path.write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
