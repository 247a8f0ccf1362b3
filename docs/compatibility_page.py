"""The page docs/compatibility.md, from pyproject.toml, constraints.txt and docs/results/compatibility.json."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_HEAD = """# Versions

<!-- Written by docs/make_pages.py from pyproject.toml, constraints.txt and docs/results/compatibility.json. -->

What `pyproject.toml` allows, what `make test` runs with (`constraints.txt`), and what the ends were tested with by
`compat/check.py`. No version is excluded from above.

"""
_WHAT = """
`compat/check.py` makes an environment for each end and runs those tests in it that lean most on transformers, torch's
modules, typer and lm-eval. `oldest` has every dependency, extras too, at its floor, `newest` whatever pip finds;
`-torch` keeps torch at the version of `constraints.txt`. A deprecation is an error in `make test`; here it is counted
and listed, so that what is new can be handled before it is removed. Python is the one that runs the check. An end that
the table does not have was not run.

"""
_FLOORS = """
## Why the floors are where they are

- transformers: with 4.56.0 experts and Gemma 3 fail, as their modules are others there, and damaged packed folders end
  in errors that do not name what is damaged. 5.0.0 does not load a packed Mixtral it saved, and 5.2.0 offloads no packed block to disk. The tests
  that failed with 5.0.0 pass from 5.4.0 on (5.1.0 to 5.5.0 were tried).
- torch 2.6.0 does not compile a dense model of transformers 5.4.0 as one graph, so nor a packed one: skipped there.
- accelerate 1.1.0 and huggingface-hub 1.5.0: what that transformers asks for.
- typer 0.27.0: older ones lean on the click that is installed. With click 8.5.1, typer 0.15.0 and 0.16.0 take a missing
  argument for `None`; 0.20.0 and 0.24.0 suggest a word twice, and 0.26.0 prints a suggestion as a tuple.
"""


def compatibility() -> str:
    """The whole page."""
    record = json.loads((ROOT / "docs" / "results" / "compatibility.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    ends = [end for end in record if "error" not in end]
    lines = [
        f"| | allowed | `make test` | {' | '.join(end['end'] for end in ends)} |",
        "|---|---|---" + "|---" * len(ends) + "|",
    ]
    lines.append(f"| python | {project['requires-python']} | | {' | '.join(end['python'] for end in ends)} |")
    for each in project["dependencies"]:
        name, floor = each.split(">=")
        pinned = pins.get(name) or pins[name.replace("-", "_")]
        lines.append(f"| {name} | >={floor} | {pinned} | {' | '.join(end['versions'][name] for end in ends)} |")
    for kind, count in (("passed", int), ("failed", len), ("skipped", int), ("deprecations", len)):
        found = (end["warnings" if kind == "deprecations" else kind] for end in ends)
        lines.append(f"| {kind} | | | {' | '.join(str(count(each)) for each in found)} |")
    said = [f"- {end['end']}: not run, {end['error']}" for end in record if "error" in end]
    said += [f"- {end['end']}, failed: `{name}`" for end in ends for name in end["failed"]]
    said += [f"- {end['end']}: {warning}" for end in ends for warning in end["warnings"]]
    commands = ", ".join(f"`{end['command']}`" for end in record)
    return _HEAD + "\n".join(lines) + f"\n\nMade by {commands}.\n" + _WHAT + "\n".join(said) + "\n" + _FLOORS
