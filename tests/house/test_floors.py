"""Who may import whom: the contracts of pyproject.toml hold, and name every room."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"


def test_the_contracts_hold():
    done = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_room_has_its_floor():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {room.strip().removeprefix("eggs_ptp.") for floor in floors for room in floor.split("|")}
    rooms = {path.stem for path in (ROOT / "src" / "eggs_ptp").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert named == {room for room in rooms if not room.startswith("__")}
