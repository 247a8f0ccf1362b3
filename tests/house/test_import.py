"""Importing is silent and cheap."""

import subprocess
import sys

import eggs_ptp

CHECK = """
import os, sys
before = dict(os.environ)
{statement}
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
loaded = {heavy!r} & set(sys.modules)
assert not loaded, loaded
"""
WALK = """
import importlib, pkgutil, eggs_ptp
for found in pkgutil.walk_packages(eggs_ptp.__path__, "eggs_ptp."):
    if found.name != "eggs_ptp.__main__":
        importlib.import_module(found.name)
import torch
assert not torch.cuda.is_initialized()
"""


def imported(statement, heavy):
    code = CHECK.format(statement=statement, heavy=heavy)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_costs_nothing():
    imported("import eggs_ptp", {"torch", "transformers", "numpy", "pydantic", "typer", "rich", "scipy"})


def test_the_command_line_is_light():
    imported("import eggs_ptp.cli.main", {"torch", "transformers", "numpy", "scipy", "datasets", "huggingface_hub"})


def test_no_module_prints_patches_or_sets_anything():
    imported(WALK, {"datasets", "matplotlib", "pyarrow"})


def test_every_public_name_is_there():
    for name in eggs_ptp.__all__:
        assert getattr(eggs_ptp, name) is not None
    assert callable(eggs_ptp.evaluate)
