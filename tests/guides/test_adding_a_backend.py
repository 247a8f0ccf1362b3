"""The backend of docs/guides/adding-a-backend.md is installed as another package, found, and passes its tests."""

import json
import os
import subprocess
import sys
import tomllib

from guide import Guide

GUIDE = Guide("adding-a-backend")
CHECK = """
import sys
import pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", "test_dense_backend.py"])
from eggs_ptp.cli.main import main
print("DOCTOR")
sys.exit(code or main(["doctor", "--json"]))
"""


def install(folder):
    """What `pip install .` leaves of the page's package: its module, and its metadata with the entry points."""
    project = tomllib.loads(GUIDE.files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def test_the_backend_is_found_and_passes_its_tests(tmp_path):
    GUIDE.write(tmp_path)
    install(tmp_path)
    (tmp_path / "pyproject.toml").unlink()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests, _, doctor = done.stdout.partition("DOCTOR")
    assert "10 passed" in tests
    features = {feature["name"]: feature for feature in json.loads(doctor)["available"]}
    assert features["packed: dense"]["ok"]


def test_the_commands_of_the_page_are_options_that_exist():
    from eggs_ptp.cli.main import main

    for words in GUIDE.eggs_commands():
        assert main([words[0], "--help"]) == 0
