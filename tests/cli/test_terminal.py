import io
import json
import math

import pytest
from rich.console import Console

from eggs_ptp.cli import terminal
from eggs_ptp.engine import resources
from eggs_ptp.engine.event import Event


@pytest.fixture
def clock(monkeypatch):
    """`clock(0.0, 60.0)`: the times that the terminal module reads, one after the other."""

    def set_times(*times):
        remaining = iter(times)
        monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(remaining))

    return set_times


def test_json_is_one_document_without_nan(capsys):
    terminal.print_json({"a": [1.5, math.inf, (math.nan, "x")], 2: None})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None, [None, "x"]], "2": None}


def test_tables_keep_brackets_and_long_names_where_there_is_no_terminal(capsys):
    name = "model.layers.0-31.self_attn." + "q" * 80
    terminal.print_table(("name", ">count"), [(name, "32"), ("[bold]x[/bold]", "1")])
    out = capsys.readouterr().out
    assert name in out
    assert "[bold]x[/bold]" in out
    terminal.print_line("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_progress_is_a_line_per_block_where_there_is_no_terminal(capsys):
    with terminal.Progress("prune", quiet=False) as progress:
        progress.listen(Event("stage", 0, 2, "statistics"))
        progress.listen(Event("matrix", 0, 2, "prune", {}))
        progress.listen(Event("block", 1, 2))
        progress.listen(Event("block", 2, 2))
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first.startswith("prune: 1/2, ")
    assert " left, " in first
    assert last.startswith("prune: 2/2, ")
    assert "left" not in last


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda stderr=False: Console(file=screen, force_terminal=True, width=120))
    with terminal.Progress("prune", quiet=False) as progress:
        progress.listen(Event("block", 1, 2))
        progress.listen(Event("stage", 1, 2, "statistics"))
        assert progress.is_bar
    assert "prune: block 2, statistics" in screen.getvalue()
    assert "1/2" in screen.getvalue()
    assert "left" in screen.getvalue()


def test_blocks_of_an_earlier_process_do_not_shorten_the_estimate(clock):
    clock(0.0, 0.0, 60.0, 60.0)
    progress = terminal.Progress("prune", quiet=True)
    progress.__enter__()
    progress.listen(Event("remark", 40, 80, "Resuming after block 40 of 80"))
    progress.listen(Event("block", 41, 80))
    assert progress.time_left() == "39 minutes left"


def test_what_comes_before_the_blocks_does_not_lengthen_the_estimate(clock):
    clock(0.0, 0.0, 300.0, 310.0, 310.0)  # 300 seconds of text and permutations, then 10 for a block
    progress = terminal.Progress("prune", quiet=True)
    with progress:
        progress.listen(Event("stage", 0, 30, "embedding"))
        progress.listen(Event("stage", 0, 30, "order"))
        progress.listen(Event("stage", 0, 30, "observe"))
        progress.listen(Event("block", 1, 30))
        assert progress.time_left() == "4 minutes and 50 seconds left"


def test_a_resumed_run_says_how_long_the_rest_takes(capsys):
    with terminal.Progress("prune", quiet=False) as progress:
        progress.expect(600.0)
        progress.listen(Event("remark", 20, 30, "resuming after block 20 of 30 (out)"))
        progress.listen(Event("remark", 0, 30, "too little disk space"))
    assert capsys.readouterr().err.splitlines() == [
        "resuming after block 20 of 30 (out); 10 blocks remain, about 3 minutes and 20 seconds",
        "too little disk space",
    ]


def test_lines_come_now_and_then_where_steps_are_short(capsys, clock):
    clock(0.0, 0.0, 5.0, 16.0, 16.0, 20.0, 40.0)
    with terminal.Progress("evaluate", quiet=False, interval=15.0) as progress:
        for done in range(1, 5):
            progress.count(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["evaluate: 2/4", "evaluate: 4/4"]
    assert all("peak memory " in line for line in lines)


def test_the_peak_counts_what_was_freed_again(monkeypatch):
    held = [400]  # bytes, instead of what the process holds, which other programs can push out of memory

    with monkeypatch.context() as patch:
        patch.setattr(resources, "anonymous_memory", lambda: held[0] << 20)
        with terminal.Progress("bench", quiet=True) as progress:
            held[0] = 600
            progress._memory.sample()
            held[0] = 450
    assert progress.memory == (600 << 20, 400 << 20)
    assert progress.memory_text() == "peak memory 629.1 MB (419.4 MB of it libraries)"


def test_quiet_progress_prints_nothing(capsys):
    with terminal.Progress("prune", quiet=True) as progress:
        progress.listen(Event("block", 1, 2))
    assert capsys.readouterr() == ("", "")


def test_the_estimate_counts_down_within_a_block(clock):
    clock(0.0, 0.0, 10.0, 10.0, 25.0, 45.0)
    progress = terminal.Progress("prune", quiet=True)
    progress.__enter__()
    progress.count(1, 4)
    assert [progress.time_left() for _ in range(3)] == ["30 seconds left", "15 seconds left", "0 seconds left"]
