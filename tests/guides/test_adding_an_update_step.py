"""Everything that docs/guides/adding-an-update-step.md shows is run, on a tiny model in place of the demo."""

import json

import pytest
from guide import Guide

from eggs_ptp.cli.main import main

GUIDE = Guide("adding-an-update-step")


@pytest.fixture
def folder(follow):
    return follow(GUIDE)


def test_the_page_has_what_this_test_runs():
    assert GUIDE.files.keys() == {"my_updates.py", "test_my_updates.py", "rescaled.toml", "did_it_help.py"}
    assert {words[0] for words in GUIDE.eggs_commands()} == {"plan", "prune", "verify"}


def test_every_command_of_the_page_runs_in_order(folder, capsys):
    for words in GUIDE.eggs_commands():
        assert main(words) == 0, capsys.readouterr()
    plan = capsys.readouterr().out
    assert "gram, input_norm" in plan
    matrices = json.loads((folder / "out" / "rescaled" / "eggs.json").read_text())["matrices"]
    assert all(1 / 1.5 <= matrix["scale"] <= 1.5 and matrix["updated"] for matrix in matrices)


def test_the_script_of_the_page_compares_each_matrix(folder, capsys):
    GUIDE.run("did_it_help.py")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 7
    assert lines[0].startswith("model.layers.0.self_attn.q_proj: error 0.")


@pytest.mark.parametrize("name", ["test_no_row_gets_worse_and_zeros_stay", "test_it_continues_from_the_step_before"])
def test_the_tests_of_the_page_pass(folder, name):
    GUIDE.run("test_my_updates.py")[name]()
