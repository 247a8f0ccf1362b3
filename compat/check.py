"""Test both ends of the version ranges in pyproject.toml, each in its own environment: `python compat/check.py`.

The oldest end has every dependency at its lowest version, the newest has the versions that pip finds. `-torch` keeps
torch at the version of constraints.txt, which has a small build, while other versions take gigabytes. The tools of the
tests (pytest, hypothesis) have the versions of constraints.txt everywhere. Deprecations do not fail a test here; they
are listed, so that they can be handled before features are removed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# By name: whether dependencies have their lowest versions, and whether torch has that of constraints.txt.
ENDS = {"oldest": (True, False), "oldest-torch": (True, True), "newest-torch": (False, True), "newest": (False, False)}
EXTRAS = ("cpu", "data", "eval", "report")
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
# Tests that depend most on transformers, torch's modules, typer and lm-eval; kernels and mathematics are left out.
TESTS = (
    *(f"tests/{package}" for package in ("engine", "evaluation", "models")),
    *(f"tests/cli/test_{name}.py" for name in ("flags", "main", "methods", "step_docstring")),
    "tests/products/test_every_shape.py",
    *(f"tests/sparse/test_{name}.py" for name in ("convert", "linear", "torch_core")),
    "tests/test_api.py",
)
DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ends", nargs="*", metavar="END", help=f"of {', '.join(ENDS)}; default: all")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="default: those that depend most on the dependencies")
    parser.add_argument("--workers", default="0", help="of pytest-xdist; default: none")
    parser.add_argument("--environments", type=Path, help="store environments here, for further runs")
    parser.add_argument("--record", type=Path, help="JSON; its other ends are kept")
    arguments = parser.parse_args()
    if unknown := [end for end in arguments.ends if end not in ENDS]:
        parser.error(f"no such end: {', '.join(unknown)}")
    results = []
    for end in arguments.ends or ENDS:
        results.append(check(end, arguments.tests, arguments.workers, arguments.environments))
        if arguments.record:
            record(arguments.record, results[-1])
    print(table(results))
    return 1 if any("error" in result or result["failed"] for result in results) else 0


def check(end: str, tests: list[str], workers: str, environments: Path | None) -> dict[str, Any]:
    """Run the tests at one end; return their outcome, or why the environment could not be installed."""
    command = f"compat/check.py {end}" + (f" --tests {' '.join(tests)}" if tests is not TESTS else "")
    result: dict[str, Any] = {"end": end, "command": command}
    with tempfile.TemporaryDirectory(prefix="eggs-compat-") as scratch:
        folder = (environments or Path(scratch)).resolve() / end
        if errors := install(folder, end):
            return result | {"error": errors}
        python = folder / "bin" / "python"
        outcome = Path(scratch, "outcome.json")
        packages = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
        versions = {canonical(package["name"]): package["version"] for package in json.loads(packages.stdout)}
        result["python"] = ".".join(map(str, sys.version_info[:3]))
        result["versions"] = {name: versions[name] for name in sorted(lowest_versions())}
        warning_flags = [word for kind in DEPRECATIONS for word in ("-W", f"default::{kind}")]
        pytest = [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "outcome",
            "-n",
            workers,
            *warning_flags,
        ]
        # Without the caller's PYTHONPATH, which could contain the sources of another checkout.
        environment = os.environ | {"EGGS_OUTCOME": str(outcome), "PYTHONPATH": str(ROOT / "compat")}
        code = subprocess.run([*pytest, *tests], cwd=ROOT, env=environment, check=False).returncode
        if code not in (0, 1) or not outcome.is_file():  # 2: interrupted, so the outcome is incomplete
            return result | {"error": f"pytest exited with {code}"}
        return result | json.loads(outcome.read_text(encoding="utf-8"))


def install(folder: Path, end: str) -> str:
    """Install the environment of an end, unless it is installed; return pip's errors."""
    pins = folder / "pins.txt"
    wanted = "\n".join(constraints(*ENDS[end]))
    if pins.is_file() and pins.read_text(encoding="utf-8") == wanted:
        return ""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    new_pins = folder / "wanted.txt"
    new_pins.write_text(wanted, encoding="utf-8")
    package = f"{ROOT}[{','.join(EXTRAS)}]"
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    done = subprocess.run([*pip, "-e", package, *TOOLS, "-c", new_pins], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    new_pins.rename(pins)  # marks the environment as complete
    return ""


def constraints(oldest: bool, pinned_torch: bool) -> list[str]:
    """Return the lines of a constraints file: the tools, and on request the lowest versions and torch."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    versions = lowest_versions() if oldest else {}
    if pinned_torch:
        versions["torch"] = pinned["torch"]
    return [f"{name}=={version}" for name, version in (versions | {tool: pinned[tool] for tool in TOOLS}).items()]


def lowest_versions() -> dict[str, str]:
    """Return the lowest allowed version of every dependency, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (project["optional-dependencies"][extra] for extra in EXTRAS)
    ranges = (requirement.split(">=") for requirement in sum(extras, project["dependencies"]))
    return {canonical(name): version for name, version in ranges}


def canonical(name: str) -> str:
    """Return the canonical name of a package: `lm-eval` for `lm_eval`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def record(path: Path, result: dict[str, Any]) -> None:
    """Replace the result of one end in the record."""
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    ends = {earlier["end"]: earlier for earlier in recorded}
    ends[result["end"]] = result
    text = json.dumps([ends[end] for end in ENDS if end in ends], indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def table(results: list[dict[str, Any]]) -> str:
    """Return one line per end, followed by failures and deprecations."""
    lines = ["| end | python | torch | transformers | passed | failed | skipped | deprecations |"]
    lines.append("|---|---|---|---|---:|---:|---:|---:|")
    for result in results:
        if "error" in result:
            lines.append(f"| {result['end']} | not run | | | | | | |")
            continue
        names = [result["python"], *(result["versions"][name] for name in ("torch", "transformers"))]
        numbers = [result["passed"], len(result["failed"]), result["skipped"], len(result["warnings"])]
        lines.append(f"| {' | '.join(map(str, [result['end'], *names, *numbers]))} |")
    for result in results:
        details = [result["error"]] if "error" in result else [*result["failed"], *result["warnings"]]
        lines += [f"\n{result['end']}:", *(f"- {detail}" for detail in details)] if details else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
