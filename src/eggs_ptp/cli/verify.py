"""`eggs verify`: proof that a folder is what it claims to be."""

from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder.", show_default=False)],
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: all that was not pruned must be the same.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="What every matrix must satisfy; needed where there is no eggs.json.")
    ] = None,
    json: flags.Json = False,
) -> None:
    """Check every group, density, tie and value of a folder; exit code 1 with the names of what fails."""
    from eggs_ptp import api
    from eggs_ptp.cli.rows import fold
    from eggs_ptp.cli.terminal import line, print_json, table

    found = api.verify(folder, against, pattern=pattern)
    if json:
        print_json(found.to_dict())
    else:
        passed = [(check.name, ("ok", check.detail)) for check in found.checks if check.ok]
        failed = [[check.name, "1", "FAILED", check.detail] for check in found.failures]
        rows = [[each.label, str(len(each.names)), *each.cells] for each in fold(passed)]
        table(("check", ">count", "result", "detail"), rows + failed)
        names = ", ".join(check.name for check in found.failures)
        line(f"{folder}: {f'{len(failed)} of {len(found.checks)} checks failed: {names}' if names else 'ok'}")
    if not found.ok:
        raise typer.Exit(1)
