"""Everything that docs/guides/adding-a-score.md shows is run, on a tiny model in place of the demo."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from guide import Guide, code

import eggs_ptp
from eggs_ptp.cli.main import main
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.method.step import DATA

GUIDE = Guide("adding-a-score")


@pytest.fixture
def folder(follow):
    return follow(GUIDE)


def test_the_page_has_what_this_test_runs():
    assert GUIDE.files.keys() == {
        "my_scores.py",
        "test_my_scores.py",
        "fluctuation.toml",
        "from_python.py",
        "question.toml",
        "src/eggs_ptp/score/deviation.py",
    }
    assert {words[0] for words in GUIDE.eggs_commands()} == {"plan", "prune", "verify", "compare"}


def test_every_command_of_the_page_runs_in_order(folder, capsys, monkeypatch):
    monkeypatch.setattr(eggs_ptp, "__path__", [*eggs_ptp.__path__, str(folder / "src" / "eggs_ptp")])
    score = importlib.import_module("eggs_ptp.score")
    monkeypatch.setattr(score, "__path__", [*score.__path__, str(folder / "src" / "eggs_ptp" / "score")])
    printed = {}
    for words in GUIDE.eggs_commands():
        assert main(words) == 0, capsys.readouterr()
        printed[" ".join(words)] = capsys.readouterr()
    sys.modules.pop("eggs_ptp.score.deviation")
    plans = [text.out for command, text in printed.items() if command.startswith("plan")]
    assert sum("to 2:4 by wanda+sparsegpt" in plan for plan in plans) == 1
    assert "to 2:4 by ria_cp+deviation" in plans[-1]
    table = next(text.out for command, text in printed.items() if command.startswith("compare"))
    means = table.partition("mean ± standard deviation")[0]
    cells = {line.split("  ")[0].strip(): line for line in means.splitlines()}
    own, wanda = (re.findall(r"[\d.]+", cells[row]) for row in ("size, by own score", "wanda"))
    assert len(wanda) == 2 * 3  # mean, deviation and difference at two patterns
    assert own == wanda
    assert re.findall(r"[\d.]+", cells["variation"]) != wanda
    assert len(list((folder / "out" / "records").iterdir())) == 1 + 3 * 2 * 2


def test_the_recipe_uses_the_score_and_its_record_says_so(folder, capsys):
    main(["prune", "demo", "--recipe", "fluctuation.toml", "-o", "out", "--json"])
    assert '"name": "my_scores:fluctuation"' in capsys.readouterr().out
    GUIDE.run("from_python.py")
    assert float(capsys.readouterr().out) > 1
    first, second = (folder / name / "model.safetensors" for name in ("out", "out/from-python"))
    assert first.read_bytes() == second.read_bytes()


def test_the_test_of_the_page_passes(folder):
    GUIDE.run("test_my_scores.py")["test_with_the_whole_mean_it_is_wanda"]()


def test_the_program_finds_the_file_by_its_path(folder, tiny):
    command = [sys.executable, "-P", "-m", "eggs_ptp", "plan", str(tiny()), "--recipe", "fluctuation.toml"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "input_mean, input_var" in done.stdout) == (0, True), done


def test_errors_about_options_are_those_of_the_page(folder, capsys):
    cases = GUIDE.rows("requested")
    assert len(cases) == 5
    for requested, error in cases:
        assert main(["plan", "demo", "--recipe", "fluctuation.toml", "--set", code(requested)]) == 2
        assert code(error) in capsys.readouterr().err


def test_errors_about_the_file_are_those_of_the_page(folder, capsys):
    cases = GUIDE.rows("in the file")
    source = GUIDE.files["my_scores.py"]
    assert len(cases) == 3
    for changed, original, error in cases:
        assert source.count(code(original)) == 1
        (folder / "my_scores.py").write_text(source.replace(code(original), code(changed)))
        sys.modules.pop("my_scores", None)
        importlib.invalidate_caches()
        assert main(["prune", "demo", "--recipe", "fluctuation.toml", "-o", "out"]) == 2
        assert code(error) in capsys.readouterr().err


def test_the_tables_of_slots_and_statistics_are_complete():
    slots = {code(slot): set(re.findall(r"`(\w+)`", data)) for slot, data, _ in GUIDE.rows("slot")}
    assert slots == {slot: set(data) for slot, data in DATA.items()}
    with_statistics = {code(slot) for slot, data, _ in GUIDE.rows("slot") if "statistics" in data}
    assert with_statistics == DATA.keys() - {"permute", "tune"}
    meanings = {code(name): meaning.replace("\\|", "|") for name, meaning in GUIDE.rows("statistic")}
    assert meanings == {name: statistic.formula for name, statistic in STATISTICS.items()}
