import json

import pytest

from eggs_ptp.comparison import runner
from eggs_ptp.research.reproduction.published import published


@pytest.fixture
def reproduce(eggs, tiny, text_file):
    """`reproduce("table-8")`: the verb on a tiny model."""
    texts = ("--calibration", text_file, "--nsamples", 2, "--seqlen", 32, "--text", text_file, "--max-windows", 2)
    return lambda *arguments: eggs("reproduce", *arguments, "--model", tiny(), *texts, "--seeds", 1)


def test_without_a_name_all_are_listed(eggs):
    ran = eggs("reproduce")
    assert ran.code == 0
    for name, item in published().items():
        (row,) = (line for line in ran.out.splitlines() if line.split()[:1] == [name])
        assert item.paper.title in row
        assert ("GPU" in row) == (item.measure in ("perplexity", "accuracy"))
    listed = eggs("reproduce", "--json").json["items"]
    assert [item["name"] for item in listed] == list(published())
    assert [item["measure"] for item in listed] == [item.measure for item in published().values()]
    assert {item["recorded"] for item in listed} == {None}


def test_with_only_a_name_the_papers_numbers_are_shown(eggs):
    ran = eggs("reproduce", "table-3")
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["LLaMA2-7B"] in lines
    assert ["RIA", "7.39", "6.81", "6.88", "7.37"] in lines
    assert "eggs reproduce table-3 --model meta-llama/Llama-2-7b-hf" in ran.out
    numbers = eggs("reproduce", "table-3", "--json").json["numbers"]
    assert len(numbers) == 80
    assert {number["source"] for number in numbers} == {"Symmetric Pruning, arXiv:2501.18980, Table 3"}
    (number,) = eggs("reproduce", "eggs-2of4", "--json").json["numbers"]
    assert (number["model"], number["row"], number["paper"]) == ("llama3.2-1b", ["EGGS-PTP"], "60.9")


def test_a_table_is_run_and_recorded(eggs, reproduce, tmp_path, tiny):
    records = tmp_path / "records"
    ran = reproduce("table-8", "-o", records)
    assert ran.code == 0
    words = [line.split() for line in ran.out.splitlines()]
    assert [line[0] for line in words if line[:1] and line[0] in ("Dense", "S2", "S3", "S4")] == [
        "Dense",
        "S2",
        "S3",
        "S4",
    ]
    assert "2 windows, " in ran.out
    assert "the paper's numbers are not shown: the paper's models are LLaMA2-7B, " in ran.out
    assert len(ran.err.splitlines()) == 5
    again = reproduce("table-8", "-o", records, "--json")
    assert again.err == ""
    assert len(list(records.iterdir())) == 5
    assert again.json["command"].startswith("eggs reproduce table-8 -o ")
    assert [cell["row"] for cell in again.json["numbers"]] == [[], ["S1 (default)"], ["S2"], ["S3"], ["S4"]]
    assert {cell["paper"] for cell in again.json["numbers"]} == {None}
    assert [run["perplexity"] for run in again.json["runs"]] == [cell["ours"] for cell in again.json["numbers"][1:]]
    listed = reproduce("-o", records, "--json").json["items"]
    recorded = {item["name"]: item["recorded"] for item in listed}
    assert (recorded["table-8"], recorded["table-7"]) == ("5 of 5 runs", "1 of 7 runs")
    assert recorded["figure-1"] is recorded["eggs-speed"] is None


def test_a_run_that_fails_is_exit_code_2_after_the_table(reproduce, monkeypatch):
    def fail(*positional, **keywords):
        raise runner.EggsError("no disk")

    monkeypatch.setattr(runner.api, "prune", fail)
    ran = reproduce("table-8")
    assert ran.code == 2
    assert "- S2, seed 0 failed: no disk" in ran.out


def test_figure_1_is_drawn_with_its_stripes(eggs, tiny, tmp_path):
    ran = eggs("reproduce", "figure-1", "--model", tiny(), "-o", tmp_path, "--json")
    assert ran.code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"figure-1.svg", "figure-1.png"}
    assert ran.json["stripes"]["input_ratio"] > 0
    name = ran.json["matrix"]
    other_matrix = name.replace("q_proj", "o_proj")
    ran = eggs("reproduce", "figure-1", "--model", tiny(), "-o", tmp_path, "--matrix", other_matrix)
    assert ran.out.startswith(f"|W| of {other_matrix}.")


def test_speed_is_measured_by_bench(eggs):
    ran = eggs("reproduce", "eggs-speed", "--model", "my model")
    assert ran.code == 0
    assert "  eggs prune 'my model' --method eggs_paper --pattern 2:4 -o out/pruned\n" in ran.out
    assert "is 1.64 times as fast as dense" in ran.out
    assert eggs("reproduce", "eggs-speed", "--json").json["commands"][-1].startswith("eggs bench out/packed")


@pytest.mark.slow
def test_zero_shot_on_task_files(eggs, shared):
    small = ("--nsamples", 2, "--seqlen", 32, "--max-windows", 2, "--seeds", 1, "--limit", 2)
    ran = eggs("reproduce", "table-6", "--model", "demo", *small, "--data", shared / "data" / "zeroshot", "--json")
    assert ran.code == 0
    assert {len(run["tasks"]) for run in ran.json["runs"]} == {7}
    assert json.dumps(ran.json).count('"items": 2') == 49  # 7 tasks of 6 pruned models and the dense one
    assert ran.json["paper_left_out"].startswith("the paper's models are")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table-11",), "no table or figure is named 'table-11', did you mean 'table-10'"),
        (("table-2", "--data", "folder"), "table-2: Table 2 has no zero-shot tasks"),
        (("table-2", "--limit", "0"), "--limit"),
        (("table-2", "--set", "nonsense=1"), "nonsense"),
        (("table-2", "--matrix", "q_proj"), "--matrix is for figures; table-2 is not a figure"),
        (("figure-1",), "figure-1 is a figure: give a folder for its files with -o"),
        ((), "to list recorded runs, give --model and -o"),
    ],
)
def test_impossible_requests_are_one_line(reproduce, arguments, message):
    assert message in reproduce(*arguments).error


def test_an_unknown_model_is_one_line(eggs):
    assert "nowhere: no such folder" in eggs("reproduce", "table-2", "--model", "nowhere").error
    assert "give --model and -o" in eggs("reproduce", "-o", "records").error
