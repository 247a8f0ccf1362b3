"""`eggs verify`: check that a pruned folder is what its record says."""

from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder.", show_default=False)]
_Against = Annotated[
    str | None, typer.Option(help="The dense model it was made from: everything that was not pruned must be equal.")
]
_Pattern = Annotated[
    str | None, typer.Option(help="Pattern that every matrix must satisfy; required where there is no eggs.json.")
]


def verify(folder: _Folder, against: _Against = None, pattern: _Pattern = None, json: flags.Json = False) -> None:
    """Check every N:M group, density, tied weight and value of a folder. Exit code 1 if a check fails."""
    from eggs_ptp import api
    from eggs_ptp.cli.merged_rows import merge_rows
    from eggs_ptp.cli.terminal import print_json, print_line, print_table

    verification = api.verify(folder, against, pattern=pattern)
    if json:
        print_json(verification.to_dict())
    else:
        passed = merge_rows((check.name, ("ok", check.detail)) for check in verification.checks if check.ok)
        rows = [[row.label, str(len(row.names)), *row.cells] for row in passed]
        rows += [[check.name, "1", "FAILED", check.detail] for check in verification.failures]
        print_table(("check", ">count", "result", "detail"), rows)
        failures = verification.failures
        if failures:
            names = ", ".join(check.name for check in failures)
            print_line(f"{folder}: {len(failures)} of {len(verification.checks)} checks failed: {names}")
        else:
            print_line(f"{folder}: ok")
    if not verification.ok:
        raise typer.Exit(1)
