"""The import contracts of pyproject.toml hold, and cover every package."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "eggs_ptp"
LINT_IMPORTS = (
    "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"
)


def layers_of(name):
    """The modules that a contract about layers names, without the name of the package."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["name"] == name)
    modules = [module.strip() for layer in contract["layers"] for module in layer.split("|")]
    return {module.removeprefix("eggs_ptp.") for module in modules}


def modules_in(folder):
    return {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__main__",
        "__pycache__",
    }


def test_the_contracts_hold():
    command = [sys.executable, "-c", LINT_IMPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_package_has_a_layer():
    layers = layers_of("package layers")
    research = {f"research.{module}" for module in modules_in(PACKAGE / "research")}
    assert layers == (modules_in(PACKAGE) - {"research"}) | research
