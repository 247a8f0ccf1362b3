"""Everything that docs/adding-a-method.md shows is run, on a tiny model in the place of the demo."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eggs_ptp import api
from eggs_ptp.cli.main import main
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.method.step import DATA

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
FILES = {
    name: text for kind, name, text in re.findall(r"```(python|toml)\n# (\S+)\n(.*?)```", PAGE, re.S) if kind and text
}
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def rows_of(head):
    """The cells of the table that begins with that head."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell):
    return cell.removeprefix("`").removesuffix("`")


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """A folder with the page's files, where `demo` is a tiny model."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api, "model_folder", lambda: tiny())
    monkeypatch.setattr(api, "builtin_documents", lambda split: [f"{i}: text for {split}. " * 20 for i in range(20)])
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    yield tmp_path
    sys.modules.pop("my_scores", None)


def test_the_page_has_what_this_test_runs():
    assert FILES.keys() == {"my_scores.py", "test_my_scores.py", "fluctuation.toml", "from_python.py", "question.toml"}
    assert {command.split()[1] for command in COMMANDS} == {"PYTHONPATH=.", "plan", "prune", "verify", "compare"}


def test_every_command_of_the_page_runs_in_order(folder, capsys):
    printed = {}
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "eggs":
            assert main(words[1:]) == 0, capsys.readouterr()
            printed[words[1]] = capsys.readouterr()
        else:
            assert words == ["export", "PYTHONPATH=."]
    assert "to 2:4 by wanda+sparsegpt" in printed["plan"].out
    cells = {line.split("  ")[0].strip(): line for line in printed["compare"].out.splitlines()}
    own, wanda = (re.findall(r"[\d.]+", cells[row]) for row in ("size, by own score", "wanda"))
    assert len(wanda) == 2 * 3  # mean, deviation and difference at two patterns
    assert own == wanda
    assert re.findall(r"[\d.]+", cells["movement"]) != wanda
    assert len(list((folder / "out" / "records").iterdir())) == 1 + 3 * 2 * 2


def test_the_recipe_uses_the_score_and_its_record_says_so(folder, capsys):
    main(["prune", "demo", "--recipe", "fluctuation.toml", "-o", "out", "--json"])
    assert '"name": "my_scores:fluctuation"' in capsys.readouterr().out
    exec(compile(FILES["from_python.py"], "from_python.py", "exec"), {})  # noqa: S102
    assert float(capsys.readouterr().out) > 1
    one, two = (folder / name / "model.safetensors" for name in ("out", "out/from-python"))
    assert one.read_bytes() == two.read_bytes()


def test_the_test_of_the_page_passes(folder):
    names = {}
    exec(compile(FILES["test_my_scores.py"], "test_my_scores.py", "exec"), names)  # noqa: S102
    names["test_the_whole_mean_makes_it_wanda"]()


def test_the_program_finds_the_file_by_its_path(folder, tiny):
    command = [sys.executable, "-P", "-m", "eggs_ptp", "plan", str(tiny()), "--recipe", "fluctuation.toml"]
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=120)
    assert (found.returncode, "input_mean, input_var" in found.stdout) == (0, True), found


def test_what_the_page_says_about_options_is_said(folder, capsys):
    cases = rows_of("what is asked for")
    assert len(cases) == 5
    for asked, said in cases:
        assert main(["plan", "demo", "--recipe", "fluctuation.toml", "--set", code(asked)]) == 2
        assert code(said) in capsys.readouterr().err


def test_what_the_page_says_about_the_file_is_said(folder, capsys):
    cases = rows_of("what the file has")
    assert len(cases) == 3
    for has, instead, said in cases:
        assert FILES["my_scores.py"].count(code(instead)) == 1
        (folder / "my_scores.py").write_text(FILES["my_scores.py"].replace(code(instead), code(has)))
        sys.modules.pop("my_scores", None)
        importlib.invalidate_caches()
        assert main(["prune", "demo", "--recipe", "fluctuation.toml", "-o", "out"]) == 2
        assert code(said) in capsys.readouterr().err


def test_the_tables_of_slots_and_statistics_are_complete():
    slots = {code(slot): set(re.findall(r"`(\w+)`", data)) for slot, data, _ in rows_of("slot")}
    assert slots == {slot: set(data) for slot, data in DATA.items()}
    with_statistics = {code(slot) for slot, data, _ in rows_of("slot") if "statistics" in data}
    assert with_statistics == DATA.keys() - {"permute", "tune"}
    meanings = {code(name): meaning.replace("\\|", "|") for name, meaning in rows_of("statistic")}
    assert meanings == {name: statistic.formula for name, statistic in STATISTICS.items()}
