"""Test both ends of the ranges in pyproject.toml, each in an environment of its own: `python compat/check.py`.

The oldest end has every dependency at its floor, the newest whatever pip finds. `-torch` keeps torch at the version of
constraints.txt, for which there is a small build where that of another version is gigabytes. What tests need beside
(pytest, hypothesis) is as in constraints.txt everywhere. Deprecations do not fail a test here; they are listed, so that
they can be handled before they are removals.
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
# name: (whether dependencies are at their floors, whether torch is that of constraints.txt)
ENDS = {"oldest": (True, False), "oldest-torch": (True, True), "newest-torch": (False, True), "newest": (False, False)}
EXTRAS = ("cpu", "data", "eval", "report")
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
# What leans most on transformers, torch's modules, typer and lm-eval; kernels and mathematics are left out.
TESTS = (
    *(f"tests/{room}" for room in ("engine", "evaluation", "models")),
    *(f"tests/cli/test_{name}.py" for name in ("docstring", "flags", "main", "methods")),
    "tests/products/test_every_shape.py",
    *(f"tests/sparse/test_{name}.py" for name in ("convert", "linear", "torch_core")),
    "tests/test_api.py",
)
DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ends", nargs="*", metavar="END", help=f"of {', '.join(ENDS)}; default: all")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="default: what stands on the dependencies")
    parser.add_argument("--workers", default="0", help="of pytest-xdist; default: none")
    parser.add_argument(
        "--environments", type=Path, help="folder where they are kept for another run; default: none is"
    )
    parser.add_argument("--record", type=Path, help="JSON; other ends that it has are kept")
    given = parser.parse_args()
    if unknown := [end for end in given.ends if end not in ENDS]:
        parser.error(f"no such end: {', '.join(unknown)}")
    results = []
    for end in given.ends or ENDS:
        results.append(checked(end, given.tests, given.workers, given.environments))
        if given.record:
            record(given.record, results[-1])
    print(table(results))
    return 1 if any("error" in result or result["failed"] for result in results) else 0


def checked(end: str, tests: list[str], workers: str, kept: Path | None) -> dict[str, Any]:
    """What the tests come to at one end, or why there is no such environment."""
    command = f"compat/check.py {end}" + (f" --tests {' '.join(tests)}" if tests is not TESTS else "")
    result: dict[str, Any] = {"end": end, "command": command}
    with tempfile.TemporaryDirectory(prefix="eggs-compat-") as scratch:
        place = (kept or Path(scratch)).resolve() / end
        if errors := install(place, end):
            return result | {"error": errors}
        python, counted = place / "bin" / "python", Path(scratch, "counted.json")
        versions = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
        found = {canonical(each["name"]): each["version"] for each in json.loads(versions.stdout)}
        result["python"] = ".".join(map(str, sys.version_info[:3]))
        result["versions"] = {name: found[name] for name in sorted(floors())}
        relaxed = [word for kind in DEPRECATIONS for word in ("-W", f"default::{kind}")]
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "counted", "-n", workers, *relaxed]
        # Without PYTHONPATH of the caller, which could have another checkout's sources.
        environment = os.environ | {"EGGS_COUNTED": str(counted), "PYTHONPATH": str(ROOT / "compat")}
        code = subprocess.run([*pytest, *tests], cwd=ROOT, env=environment, check=False).returncode
        if code not in (0, 1) or not counted.is_file():  # 2: interrupted, so counted in part
            return result | {"error": f"pytest exited with {code}"}
        return result | json.loads(counted.read_text(encoding="utf-8"))


def install(place: Path, end: str) -> str:
    """The environment of an end, unless it is there; what pip says if there can be none."""
    pins = place / "pins.txt"
    wanted = "\n".join(constraints(*ENDS[end]))
    if pins.is_file() and pins.read_text(encoding="utf-8") == wanted:
        return ""
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    draft = place / "wanted.txt"
    draft.write_text(wanted, encoding="utf-8")
    package = f"{ROOT}[{','.join(EXTRAS)}]"
    pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    done = subprocess.run([*pip, "-e", package, *TOOLS, "-c", draft], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    draft.rename(pins)  # only what is complete is used again
    return ""


def constraints(oldest: bool, pinned_torch: bool) -> list[str]:
    """Lines of a constraints file: of the tools always, of floors and torch where they are asked for."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    versions = floors() if oldest else {}
    if pinned_torch:
        versions["torch"] = pinned["torch"]
    return [f"{name}=={version}" for name, version in (versions | {tool: pinned[tool] for tool in TOOLS}).items()]


def floors() -> dict[str, str]:
    """The oldest version of every dependency that pyproject.toml allows, with those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (project["optional-dependencies"][extra] for extra in EXTRAS)
    ranges = (each.split(">=") for each in sum(extras, project["dependencies"]))
    return {canonical(name): version for name, version in ranges}


def canonical(name: str) -> str:
    """One name a package: `lm_eval` is `lm-eval`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def record(path: Path, result: dict[str, Any]) -> None:
    """`result` in the place of what the record had of the same end."""
    ends = {each["end"]: each for each in json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
    ends[result["end"]] = result
    text = json.dumps([ends[end] for end in ENDS if end in ends], indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def table(results: list[dict[str, Any]]) -> str:
    """One line an end; below it, what failed and what is deprecated."""
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
        said = [result["error"]] if "error" in result else [*result["failed"], *result["warnings"]]
        lines += [f"\n{result['end']}:", *(f"- {each}" for each in said)] if said else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
