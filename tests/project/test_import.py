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
IMPORT_ALL = """
import importlib, pkgutil, eggs_ptp
for module in pkgutil.walk_packages(eggs_ptp.__path__, "eggs_ptp."):
    if module.name not in ("eggs_ptp.__main__", "eggs_ptp.models.packed_lora"):  # the latter needs peft
        importlib.import_module(module.name)
import torch
assert not torch.cuda.is_initialized()
"""


def check_import(statement, heavy):
    code = CHECK.format(statement=statement, heavy=heavy)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_is_cheap():
    check_import("import eggs_ptp", {"torch", "transformers", "numpy", "pydantic", "typer", "rich", "scipy"})


def test_importing_the_command_line_is_cheap():
    heavy = {"torch", "transformers", "numpy", "scipy", "datasets", "huggingface_hub"}
    check_import("import eggs_ptp.cli.main", heavy)


def test_no_module_prints_patches_or_sets_anything():
    check_import(IMPORT_ALL, {"datasets", "matplotlib", "pyarrow"})


def test_every_public_name_is_there():
    for name in eggs_ptp.__all__:
        assert getattr(eggs_ptp, name) is not None
    assert callable(eggs_ptp.evaluate)
