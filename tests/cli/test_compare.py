import csv
import io
import json

import pytest

from eggs_ptp import api
from eggs_ptp.comparison import runner
from eggs_ptp.errors import NumericsError


@pytest.fixture
def compare(eggs, tiny, text_file):
    """`compare("--methods", "wanda")`: the verb on a tiny model."""
    texts = ("--calibration", text_file, "--nsamples", 2, "--seqlen", 32, "--text", text_file, "--max-windows", 2)
    return lambda *arguments: eggs("compare", tiny(), *texts, *arguments)


def test_a_table_with_mean_deviation_and_difference_to_dense(compare):
    ran = compare("--methods", "magnitude,ria,eggs", "--patterns", "0.5,2:4", "--seeds", 2)
    assert ran.code == 0
    words = [line.split() for line in ran.out.splitlines()]
    assert "too little text: 2 windows, 254 tokens" in ran.out
    assert "× best (95 %)" in ran.out
    best = [line for line in words if line[-3:-2] == ["best"]]
    assert len(best) == 2  # one of each column
    assert words[1] == ["method", "0.5", "2:4"]
    assert [line[0] for line in words[3:7]] == ["dense", "magnitude", "ria", "eggs"]
    assert words[3][1] == words[3][2]
    assert (len(words[4]), len(words[5])) == (5, 9)
    assert words[5][2] == words[5][6] == "±"
    assert words[6][1] == "-"
    assert "2 windows, 254 tokens" in ran.out
    assert ran.out.splitlines()[-1].startswith("- eggs at 0.5: ")
    lines = ran.err.splitlines()
    assert len(lines) == 2 + 1 + 2 + 2 * 3
    assert lines[0].startswith("compare: 8 runs: pruning takes about ")
    assert lines[1].startswith("compare: 8 runs: about ")
    assert lines[2].startswith("compare: 0/8 dense: ")
    assert lines[-1].startswith("compare: 8/8 eggs at 2:4, seed 1: ")


def test_as_json_is_one_document(compare):
    ran = compare("--methods", "wanda,eggs", "--patterns", "0.5,2:4", "--seeds", 2, "--json")
    assert ran.err == ""
    assert [(entry["row"], entry["column"], entry["seeds"]) for entry in ran.json["table"]] == [
        (["wanda"], "0.5", 2),
        (["wanda"], "2:4", 2),
        (["eggs"], "0.5", 0),
        (["eggs"], "2:4", 2),
    ]
    wanda = ran.json["table"][0]
    values = [record["perplexity"] for record in ran.json["records"] if record["row"] == ["wanda"]][:2]
    assert wanda["perplexity"] == pytest.approx(sum(values) / 2)
    assert wanda["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert wanda["difference"] == pytest.approx(wanda["perplexity"] - ran.json["dense"]["perplexity"])
    assert "needs an N:M pattern" in ran.json["table"][2]["remark"]
    assert {record["seed"] for record in ran.json["records"]} == {0, 1}
    assert {record["model"] for record in [ran.json["dense"], *ran.json["records"]]} == {ran.json["model"]}
    assert all(entry["processor_seconds"] > 0 for entry in ran.json["table"] if entry["seeds"])
    assert all(entry["peak_memory_bytes"] > 0 for entry in ran.json["table"] if entry["seeds"])
    assert wanda["ratio_to_best"] is None  # it is the best of its column
    assert wanda["ratio_to_dense"]["pairs"] == 2
    assert ran.json["command"].startswith("eggs compare ")
    assert ran.json["command"].endswith(" --methods wanda,eggs --patterns 0.5,2:4 --seeds 2 --json")


def test_as_markdown_and_as_csv(compare):
    command = ("--methods", "magnitude,eggs", "--patterns", "0.5", "--seeds", 1)
    markdown = compare(*command, "--format", "markdown").out.splitlines()
    assert markdown[:2] == ["| method | 0.5 |", "|---|---:|"]
    assert markdown[-1].startswith("- eggs at 0.5: ")
    rows = list(csv.reader(io.StringIO(compare(*command, "--format", "csv").out)))
    paired = ["ratio_to_best", "ratio_low", "ratio_high", "processor_seconds", "peak_memory_bytes"]
    assert rows[0] == ["method", "column", "perplexity", "sd", "seeds", "difference", *paired, "remark"]
    assert [row[0] for row in rows] == ["method", "dense", "magnitude", "eggs"]
    assert {len(row) for row in rows} == {12}


def test_csv_and_markdown_have_the_paired_ratio_to_the_best(compare):
    command = ("--methods", "magnitude,wanda", "--patterns", "2:4", "--seeds", 1)
    first, *rows = csv.reader(io.StringIO(compare(*command, "--format", "csv").out))
    cells = {row[0]: dict(zip(first, row, strict=True)) for row in rows}
    best, other = sorted(("magnitude", "wanda"), key=lambda name: float(cells[name]["perplexity"]))
    ratio, low, high = (float(cells[other][key]) for key in ("ratio_to_best", "ratio_low", "ratio_high"))
    assert ratio == pytest.approx(float(cells[other]["perplexity"]) / float(cells[best]["perplexity"]), rel=1e-4)
    assert low < ratio < high
    assert cells[best]["ratio_to_best"] == ""
    table = compare(*command, "--format", "markdown").out.splitlines()
    (line,) = (line for line in table if line.startswith(f"| {other} | 2:4 |"))
    assert f"({low:.2f}-{high:.2f})" in line


def test_a_pattern_that_fits_no_matrix_is_refused_before_anything_is_evaluated(compare, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: pytest.fail("a model was evaluated"))
    command = ("--methods", "wanda,magnitude", "--patterns", "2:7", "--seeds", 1)
    assert "cannot be cut into groups of 7" in compare(*command).error
    assert "longer than the model's context" in compare("--methods", "wanda", "--seqlen", 100_000).error


def test_a_report_of_the_folder_has_the_paired_ratio_to_the_best(compare, eggs, tmp_path):
    command = ("--methods", "magnitude,wanda", "--patterns", "2:4", "--seeds", 1, "-o", tmp_path / "records")
    (cell,) = (cell for cell in compare(*command, "--json").json["table"] if cell["ratio_to_best"])
    assert eggs("report", tmp_path / "records", "-o", tmp_path / "r.html", "--markdown", tmp_path / "r.md").code == 0
    ratio = cell["ratio_to_best"]
    (line,) = (line for line in (tmp_path / "r.md").read_text().splitlines() if f"| {cell['row'][0]} | 2:4 |" in line)
    assert f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" in line


def test_a_file_describes_the_whole_comparison(compare, tmp_path, tiny):
    file = tmp_path / "table.toml"
    file.write_text(
        'title = "A table of mine"\nheads = ["score", "alpha"]\nseeds = 1\npattern = 0.6\n'
        'rows = [{ label = ["ria", "1"], method = "ria", steps.score.alpha = 1 }]\n[[columns]]\n'
    )
    ran = compare("--recipe", file)
    assert ran.out.splitlines()[0] == "A table of mine"
    assert f"score alpha {tiny().name}" in " ".join(ran.out.split())
    assert (
        compare("--recipe", "table-3", "--methods", "ria", "--set", "pattern=2:4", "--json").json["table"][1]["column"]
        == "0.5"
    )


def test_flags_override_the_evaluation_of_the_file(eggs, tiny, text_file, tmp_path):
    file = tmp_path / "table.toml"
    rows = [json.dumps({"body": "a text that is not long"}) for _ in range(4)]
    texts = tmp_path / "held.jsonl"
    texts.write_text("\n".join(rows))
    file.write_text(
        'method = "magnitude"\n[evaluation]\n'
        f'text = "{texts}"\ntext_field = "body"\nprotocol = "documents"\nseqlen = 64\nmax_windows = 3\n'
    )

    def evaluated(*flags):
        comparison = eggs("compare", tiny(), "--recipe", file, "--json", *flags).json
        assert len(comparison["records"]) == 1
        dense = comparison["dense"]["evaluation"]
        return [dense[key] for key in ("protocol", "seqlen", "windows")]

    assert evaluated() == ["documents", 64, 3]
    assert evaluated("--eval-seqlen", 32, "--max-windows", 2, "--seqlen", 16) == ["documents", 32, 2]
    assert evaluated("--text", text_file, "--protocol", "packed", "--text-field", "text") == ["packed", 64, 3]


def test_a_run_that_fails_is_exit_code_2_after_the_table(compare, tmp_path):
    ran = compare("--methods", "magnitude", "--patterns", "2:4,3:5", "-o", tmp_path / "records")
    assert ran.code == 2
    assert "failed" in ran.out
    assert "magnitude at 3:5, seed 0 failed: " in ran.out.splitlines()[-1]
    assert "error" not in ran.err
    failed = compare("--methods", "magnitude", "--patterns", "2:4,3:5", "--json")
    assert failed.code == 2
    assert [bool(entry["remark"]) for entry in failed.json["table"]] == [False, True]
    again = compare("--methods", "magnitude", "--patterns", "2:4", "-o", tmp_path / "records")
    assert again.code == 0
    first, second, *others = again.err.splitlines()
    assert first.startswith("compare: 0 runs (1 more are recorded): ")
    assert second.startswith("compare: 0 runs (1 more are recorded): about 0 seconds")
    assert all("as recorded" in line for line in others)


def test_an_interruption_leaves_the_records(compare, monkeypatch, tmp_path):
    prune = api.prune

    def interrupted(model, out, recipe, **keywords):
        if recipe.seed == 1:
            raise KeyboardInterrupt
        return prune(model, out, recipe, **keywords)

    monkeypatch.setattr(runner.api, "prune", interrupted)
    ran = compare("--methods", "wanda", "-o", tmp_path / "records")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1] == "eggs: interrupted"
    assert len(list((tmp_path / "records").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "wanda,egs"), "no method is named 'egs', did you mean 'eggs'?"),
        (("--methods", "wanda,"), "no method is named ''"),
        (("--methods", "wanda+dsnt"), "'dsnt' is neither a step nor a method, did you mean 'dsnot'?"),
        (("--patterns", "2:4,4:2"), "--patterns: pattern 4:2 keeps 4 of 2"),
        (("--patterns", "0.5,.50"), "columns: two are labelled '0.5'"),
        (("--methods", "eggs", "--patterns", "0.5"), "nothing to compare: eggs at 0.5: "),
        (("--seeds", "0"), "--seeds"),
        (("--seeds", "two"), "--seeds"),
        (("--recipe", "table-22"), "no shipped table, did you mean 'table-2'?; shipped: table-10, "),
        (("--recipe", "table-22.toml"), "table-22.toml cannot be read"),
        (("--recipe", "table-6"), "table-6: its numbers are accuracies in zero-shot tasks, and comparisons measure"),
        (("--recipe", "table-3", "--patterns", "2:4"), "already sets patterns in its rows or columns"),
        (("--set", "steps.score.alhpa=1"), "did you mean 'alpha'"),
        (("--format", "html"), "--format"),
        (("--eval-seqlen", "1"), "--eval-seqlen"),
    ],
)
def test_impossible_comparisons_are_one_line_before_any_model_is_read(compare, monkeypatch, arguments, message):
    def evaluate(*positional, **keywords):
        raise NumericsError("too late")

    monkeypatch.setattr(runner.api, "evaluate", evaluate)
    assert message in compare(*arguments).error


def test_the_demo_is_calibrated_on_its_own_text(eggs, tiny, monkeypatch):
    folder = tiny()
    monkeypatch.setattr(api.inputs, "model_folder", lambda: folder)
    monkeypatch.setattr(api.inputs, "builtin_documents", lambda split: [f"the text for {split} " * 100])
    ran = eggs("compare", "demo", "--recipe", "table-8", "--nsamples", 2, "--seqlen", 32, "--json")
    assert ran.code == 0
    assert {record["calibration"]["source"] for record in ran.json["records"]} == {"the built-in text"}
    assert {record["calibration"]["sampling"] for record in ran.json["records"]} == {"packed"}
    assert ran.json["columns"] == ["demo"]
