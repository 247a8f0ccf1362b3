"""The verb of docs/guides/adding-a-verb.md is registered, run and tested by the page's own tests."""

import importlib

import pytest
from guide import Guide

from eggs_ptp import cli, prune
from eggs_ptp.cli.main import main
from eggs_ptp.cli.program import app

GUIDE = Guide("adding-a-verb")


@pytest.fixture
def pruned_folder(tiny, tmp_path):
    prune(str(tiny()), tmp_path / "out" / "pruned", method="magnitude")
    return tmp_path / "out" / "pruned"


@pytest.fixture
def registered(tmp_path, monkeypatch):
    GUIDE.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path / "src" / "eggs_ptp" / "cli")])
    monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
    app.command()(importlib.import_module("eggs_ptp.cli.zeros").zeros)


def test_the_commands_of_the_page_run(registered, pruned_folder, capsys):
    for words in GUIDE.eggs_commands():
        assert main(words) == 0, capsys.readouterr()
    assert '"model.layers.0.mlp.down_proj": 0.5' in capsys.readouterr().out


def test_the_tests_of_the_page_pass(registered, pruned_folder, tmp_path, capsys):
    tests = GUIDE.run("tests/cli/test_zeros.py")
    tests["test_half_of_a_2_of_4_matrix_is_zero"](pruned_folder, capsys)
    (tmp_path / "empty").mkdir()
    tests["test_a_folder_without_a_record_is_one_line"](tmp_path / "empty", capsys)
