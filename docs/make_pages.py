"""Write the pages that come from the code, docs/command-line.md and docs/methods.md: `python docs/make_pages.py`."""

import re
from pathlib import Path
from typing import Any

import typer

from eggs_ptp.cli.main import app
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS
from eggs_ptp.method.step import SLOTS

DOCS = Path(__file__).parent
_COMMAND_LINE = """# The command line

<!-- Written by docs/make_pages.py from the program's help. -->

`eggs VERB --help` prints the same. `--debug`, anywhere, shows where in the code an error arose; `--version` the
version. Exit codes: 0, 1 (`verify` found faults), 2 (an error, said in one line), 130 (interrupted).
"""


_METHODS = """# Methods

<!-- Written by docs/make_pages.py from the catalogue. -->

A method is a row of steps. `eggs methods NAME` shows the formula, options and defaults of each; any option can be
changed with `--set steps.SLOT.OPTION=VALUE`, any step replaced with `--set steps.SLOT=NAME`. Names join with `+`:
`wanda+dsnot` is the row `wanda` refined by `dsnot`, `magnitude+sparsegpt` updates the weights that magnitude keeps.
`-` and `_` are the same.

| name | what it does | statistics | steps | source |
|---|---|---|---|---|
"""


def pages() -> dict[Path, str]:
    """Every generated page."""
    return {DOCS / "command-line.md": command_line(), DOCS / "methods.md": methods()}


def methods() -> str:
    """One row a method."""
    lines = []
    for method in METHODS.values():
        bound = method.bind()
        steps = []
        for slot in SLOTS:
            if step := method.steps.get(slot):
                options = ", ".join(f"{key} = {value}" for key, value in step.options.items())
                steps.append(f"{slot} `{step.name}`{f' ({options})' if options else ''}")
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
