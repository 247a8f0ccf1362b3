"""The family of docs/guides/adding-a-family.md is registered, proved by the tests of families, and pruned with."""

import importlib.util
import inspect
import json
import re
from pathlib import Path
from types import MappingProxyType

import pytest
import tiny as tiny_models
from guide import Guide

from eggs_ptp import verify
from eggs_ptp.cli.main import main
from eggs_ptp.models import families, registry

GUIDE = Guide("adding-a-family")
SOURCE = GUIDE.files["src/eggs_ptp/models/families.py"]
GENERIC = Path(__file__).parents[1] / "models" / "test_families.py"


@pytest.fixture
def registered(monkeypatch):
    """The page's family, and its tiny model under the name that the page gives it."""
    entry = re.fullmatch(r'"(\w+)": (\(.*\)),\n', GUIDE.files["tests/tiny.py"])
    model = eval(entry[2])  # noqa: S307 - a literal of the page
    monkeypatch.setitem(tiny_models.OTHERS, entry[1], model)
    register(SOURCE, monkeypatch)
    return entry[1]


def register(source, monkeypatch):
    """Run the page's code as a part of families.py, and add its family to the registered ones."""
    names = dict(vars(families))
    exec(compile(source, "families.py", "exec"), names)  # noqa: S102
    family = names["STARCODER2"]
    monkeypatch.setattr(registry, "FAMILIES", MappingProxyType({**registry.FAMILIES, family.model_type: family}))


def generic_tests():
    spec = importlib.util.spec_from_file_location("generic_family_tests", GENERIC)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [test for name, test in inspect.getmembers(module, inspect.isfunction) if name.startswith("test_")]


def test_the_tests_of_families_pass(registered, tiny, tmp_path):
    count = 0
    for test in generic_tests():
        parameters = inspect.signature(test).parameters
        if "name" in parameters:
            folder = tmp_path / test.__name__
            folder.mkdir()
            available = {"name": registered, "tiny": tiny, "tmp_path": folder, "tie": False}
            test(**{name: available[name] for name in parameters})
            count += 1
    assert count >= 4


def test_a_wrong_family_fails_them(registered, tiny, monkeypatch):
    register(SOURCE.replace('input_activation="mlp_in"', 'input_activation="attention_in"'), monkeypatch)
    failed = 0
    for test in generic_tests():
        if inspect.signature(test).parameters.keys() == {"tiny", "name"}:
            try:
                test(tiny, registered)
            except AssertionError:
                failed += 1
    assert failed >= 1


def test_the_commands_of_the_page_fold_a_permutation(registered, tiny, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = {"MODEL": str(tiny(registered)), "text.txt": str(text_file)}
    for words in GUIDE.eggs_commands():
        assert main([paths.get(word, word) for word in words]) == 0, capsys.readouterr()
    assert verify("out", paths["MODEL"]).ok
    record = json.loads(Path("out/eggs.json").read_text())
    assert record["orders"] == "fold"
