"""`eggs verify`: check that a pruned folder is what its record says."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.verify import Check

_MATRICES = "pruned matrices"
_Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A pruned folder: dense, packed, or quantised afterwards by llm-compressor.",
        show_default=False,
    ),
]
_Against = Annotated[
    str | None, typer.Option(help="The dense model it was made from: everything that was not pruned must be equal.")
]
_Pattern = Annotated[
    str | None, typer.Option(help="Pattern that every matrix must satisfy; required where there is no eggs.json.")
]

_Full = Annotated[bool, typer.Option("--full", help="Show every matrix and every failure.")]
_NAMED_FAILURES = 5  # in the first line
_SHOWN_FAILURES = 20  # in the table without --full


def verify(
    folder: _Folder, against: _Against = None, pattern: _Pattern = None, full: _Full = False, json: flags.Json = False
) -> None:
    """Check every N:M group, density, tied weight and value of a folder. Exit code 1 if a check fails."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.verify import AFTER_QUANTISING
    from eggs_ptp.cli.terminal import print_json, print_line, print_table

    verification = api.verify(folder, against, pattern=pattern)
    if json:
        print_json(verification.to_dict())
    else:
        failures = verification.failures
        if failures:
            names = ", ".join(check.name for check in failures[:_NAMED_FAILURES])
            more = f" and {len(failures) - _NAMED_FAILURES} more" if len(failures) > _NAMED_FAILURES else ""
            print_line(f"{folder}: {len(failures)} of {len(verification.checks)} checks failed: {names}{more}")
        else:
            print_line(f"{folder}: ok")
        for check in verification.checks:
            if check.name == AFTER_QUANTISING:
                print_line(check.detail)
        rows = _passed_rows((check for check in verification.checks if check.name != AFTER_QUANTISING), full=full)
        failures = [check for check in failures if check.name != AFTER_QUANTISING]
        shown = failures if full else failures[:_SHOWN_FAILURES]
        rows += [[check.name, "1", "FAILED", check.detail] for check in shown]
        print_table(("check", ">count", "result", "detail"), rows)
        if len(shown) < len(failures):
            print_line(f"{len(failures) - len(shown)} more failures: --full shows all of them")
    if not verification.ok:
        raise typer.Exit(1)


def _passed_rows(checks: "Iterable[Check]", *, full: bool) -> list[list[str]]:
    """Return rows of the passed checks: matrices by linear if `full`, else all that have the same detail as one row."""
    from eggs_ptp.cli.merged_rows import merge_rows

    passed = [check for check in checks if check.ok]
    if full:
        merged = merge_rows((check.name, ("ok", check.detail)) for check in passed)
        return [[row.label, str(len(row.names)), *row.cells] for row in merged]
    counts = Counter((_MATRICES if "." in check.name else check.name, check.detail) for check in passed)
    return [[name, str(count), "ok", detail] for (name, detail), count in counts.items()]
