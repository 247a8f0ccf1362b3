"""The page docs/compatibility.md, from pyproject.toml, constraints.txt and docs/results/compatibility.json."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HEAD = """# Versions

<!-- Written by tools/docs/make_pages.py from pyproject.toml, constraints.txt and docs/results/compatibility.json. -->

The versions that `pyproject.toml` allows, those that `make test` uses (`constraints.txt`), and both ends of the allowed
ranges as tested by `compat/check.py`. There are no upper limits.

"""
_METHOD = """
`compat/check.py` creates an environment for each end, and runs in it the tests that depend most on transformers, torch's
modules, typer and lm-eval. `oldest` has every dependency, extras included, at its lowest allowed version; `newest` has the
versions that pip finds; `-torch` keeps torch at the version of `constraints.txt`. A deprecation is an error in `make test`;
here it is counted and listed, so that it can be handled before the feature is removed. Python is the one that runs the
check. An end that is missing from the table was not tested.

"""
_LOWEST = """
## Why the lowest versions are what they are

- transformers: with 4.56.0 experts and Gemma 3 fail, because their modules differ there, and damaged packed folders give
  errors that do not name what is damaged. 5.0.0 does not load a packed Mixtral that it has saved, and 5.2.0 does not offload
  a packed block to disk. The tests that failed with 5.0.0 pass from 5.4.0 on (5.1.0 to 5.5.0 were tested).
- torch 2.6.0 does not compile a dense model of transformers 5.4.0 as one graph, so not a packed one either: that test is
  skipped.
- accelerate 1.1.0 and huggingface-hub 1.5.0 are what that transformers requires.
- typer 0.27.0: older ones depend on the installed click. With click 8.5.1, typer 0.15.0 and 0.16.0 take a missing argument
  for `None`; 0.20.0 and 0.24.0 suggest a word twice, and 0.26.0 prints a suggestion as a tuple.
"""


def compatibility() -> str:
    """Return the page."""
    record = json.loads((ROOT / "docs" / "results" / "compatibility.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    ends = [end for end in record if "error" not in end]
    lines = [
        f"| | allowed | `make test` | {' | '.join(end['end'] for end in ends)} |",
        "|---|---|---" + "|---" * len(ends) + "|",
        f"| python | {project['requires-python']} | | {' | '.join(end['python'] for end in ends)} |",
    ]
    for requirement in project["dependencies"]:
        name, lowest = requirement.split(">=")
        pinned = pins.get(name) or pins[name.replace("-", "_")]
        tested = [end["versions"].get(name, "-") for end in ends]  # "-": the record is older than the dependency
        lines.append(f"| {name} | >={lowest} | {pinned} | {' | '.join(tested)} |")
    counts = {
        "passed": [end["passed"] for end in ends],
        "failed": [len(end["failed"]) for end in ends],
        "skipped": [end["skipped"] for end in ends],
        "deprecations": [len(end["warnings"]) for end in ends],
    }
    for outcome, numbers in counts.items():
        lines.append(f"| {outcome} | | | {' | '.join(map(str, numbers))} |")
    details = [f"- {end['end']}: not run, {end['error']}" for end in record if "error" in end]
    details += [f"- {end['end']}, failed: `{name}`" for end in ends for name in end["failed"]]
    details += [f"- {end['end']}: {warning}" for end in ends for warning in end["warnings"]]
    commands = ", ".join(f"`{end['command']}`" for end in record)
    return _HEAD + "\n".join(lines) + f"\n\nMeasured by {commands}.\n" + _METHOD + "\n".join(details) + "\n" + _LOWEST
