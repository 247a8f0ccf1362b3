"""The papers' tables as data, and their reproduction on a tiny model."""

import dataclasses
import json
import types
from pathlib import Path

import pytest
import torch

from eggs_ptp.comparison import runner
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.errors import CalibrationError, ModelError, RecipeError
from eggs_ptp.evaluation.harness import LOCAL_TASKS, PAPER_TASKS
from eggs_ptp.evaluation.zeroshot import TaskResult
from eggs_ptp.research.reproduction import published as papers
from eggs_ptp.research.reproduction import reproduction
from eggs_ptp.research.reproduction.heat_map import heat_map, read_matrix, stripes, tile_means
from eggs_ptp.research.reproduction.published import find_published, known_model, paper_models, published
from eggs_ptp.research.reproduction.reproduction import ProtocolSettings, build_grid, reproduce, why_not_comparable

TABLES = [name for name, item in published().items() if item.grid]
COMPLETE = [name for name in TABLES if name.startswith("table-")]


@pytest.fixture
def tiny_as(tiny, monkeypatch):
    """`tiny_as("llama2-7b")`: the tiny model is taken for that one, evaluated in windows as short as its context."""

    def take_for(key):
        config = json.loads((tiny() / "config.json").read_text())
        models = dict(paper_models())
        shape = {name: config[name] for name in ("model_type", "hidden_size", "num_hidden_layers")}
        models[key] = dataclasses.replace(models[key], config=shape)
        monkeypatch.setattr(papers, "paper_models", lambda: models)
        monkeypatch.setattr(reproduction, "PAPER_SEQLEN", 32)
        return str(tiny())

    return take_for


@pytest.fixture
def wikitext(text_file, tmp_path):
    """A text under the file name of WikiText-2's test split."""
    path = tmp_path / "wiki.test.raw"
    path.write_text(text_file.read_text())
    return str(path)


def small(text):
    return ProtocolSettings(text=text, calibration=text, nsamples=2, seqlen=32, eval_seqlen=32, seeds=1)


def test_all_tables_and_figures_are_there_in_order():
    names = list(published())
    symmetric = ["figure-1", *(f"table-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 10))]
    eggs = ["eggs-2of4", "eggs-4of8", "eggs-b", "eggs-speed", "eggs-zeroshot-2of4", "eggs-zeroshot-4of8"]
    assert names == [*eggs, *symmetric]


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_columns_are_those_of_the_grid(name):
    item = published()[name]
    grid = read_comparison(item.recipe)
    rows = {row.labels for row in grid.rows}
    numbered_rows = {row for _, row, _ in item.numbers}
    assert numbered_rows - {()} <= rows
    assert {row for claim in item.claims for row in (claim.row, claim.than)} <= rows
    columns = (*PAPER_TASKS, "mean") if item.measure == "accuracy" else tuple(column.label for column in grid.columns)
    assert item.columns == columns
    if name in COMPLETE:
        assert numbered_rows - {()} == rows
        illegible = 6 if name == "table-6" else 0
        has_dense = () in numbered_rows
        assert len(item.numbers) == (len(rows) + has_dense) * len(item.models) * len(item.columns) - illegible


@pytest.mark.parametrize("name", COMPLETE)
def test_numbers_are_those_of_the_papers_text(name, shared):
    text = (shared / "papers" / "symmetric-pruning.md").read_text(encoding="utf-8")
    words = set(
        text.replace("{", "\t").replace("}", "\t").replace("$", "\t").replace("^", "\t").replace("_", "\t").split()
    )
    item = published()[name]
    scattered = {("table-2", "stochRIA"), ("table-9", "0.01"), ("table-6", "DSnoT"), ("table-6", "R²-DSnoT")}
    for row in {row for _, row, _ in item.numbers}:
        for model in item.models:
            numbers = [item.numbers.get((model.key, row, column)) for column in item.columns]
            if name == "table-3" and row == ():  # one cell across four columns, its digits apart
                assert set(numbers) <= {"5.47", "4.88", "6.14", "14.62"}
            elif any((name, label) in scattered for label in row):
                assert {number for number in numbers if number} <= words, (row, model)
            else:
                assert "\t".join(numbers) in text, (row, model)


def test_numbers_keep_the_printed_digits():
    assert find_published("table-3").numbers["llama2-7b", ("Wanda",), "0.5"] == "7.60"
    assert find_published("table-5").numbers["llama2-7b", ("Magnitude", "-"), ""] == "6.9e3"
    assert find_published("table-2").deviations["opt-1.3b", ("50%", "stochRIA", "10%"), ""] == "0.050"
    assert ("llama2-7b", ("Magnitude", "DSnoT"), "winogrande") not in find_published("table-6").numbers


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("meta-llama/Llama-2-7b-hf", {}, ("LLaMA2-7B", True)),
        ("models/Llama-2-7b-hf/", {}, ("LLaMA2-7B", True)),
        ("meta-llama/Llama-2-7b-chat-hf", {}, ("LLaMA2-7B", False)),
        ("huggyllama/llama-7b", {"max_position_embeddings": 2048}, None),
        ("meta-llama/Llama-2-7b-hf", {"num_hidden_layers": 2}, None),
    ],
)
def test_models_are_identified_by_shape_and_then_by_name(name, changes, expected):
    known = known_model(name, {**paper_models()["llama2-7b"].config, "hidden_act": "silu", **changes})
    assert (known and (known[0].title, known[1])) == expected


def test_comparable_numbers_of_the_paper_are_shown(tiny_as, wikitext):
    model = tiny_as("llama2-7b")
    result = reproduce(find_published("table-8"), model, small(wikitext))
    cells = {cell.row: cell for cell in result.numbers}
    assert [cells[row].paper for row in (("S1 (default)",), ("S2",), ("S4",))] == ["6.81", "6.99", "14.51"]
    assert result.why_not_comparable == ""
    assert f"{model} has the shape of LLaMA2-7B; the paper's numbers are of meta-llama/Llama-2-7b-hf" in result.remarks
    assert any(remark.startswith("calibrated on 2 windows of 32 tokens of ") for remark in result.remarks)
    for cell in cells.values():
        records = result.comparison.records.get((cell.row, cell.column)) or [result.comparison.dense]
        assert cell.measured == records[0]["perplexity"]
    numbers = {tuple(number["row"]): number for number in result.to_dict()["numbers"]}
    assert numbers["S2",]["source"].startswith("Symmetric Pruning, arXiv:2501.18980, Table 8, row S2, model LLaMA2-7B")
    assert numbers["S2",]["ours"] == cells["S2",].measured
    assert numbers[()]["paper"] is None


@pytest.mark.parametrize(
    ("name", "model", "changes", "reason"),
    [
        ("table-8", "llama2-7b", {}, ""),
        ("table-8", "llama2-7b", {"text": "wikitext2"}, ""),
        ("table-8", "llama2-7b", {"text": "my/wiki.test.raw"}, ""),
        ("table-8", "llama2-7b", {"text": "c4"}, "the paper's text is WikiText-2, not c4"),
        ("table-8", "llama2-7b", {"eval_seqlen": 16}, "the paper's windows have 2048 tokens, not 16"),
        ("table-8", "llama2-7b", {"max_windows": 2}, "only the first 2 windows were evaluated"),
        ("table-8", None, {}, "the paper's models are LLaMA2-7B, LLaMA2-13B, LLaMA3-8B, OPT-1.3b"),
        ("table-8", "llama3.2-1b", {}, "the paper's models are LLaMA2-7B, LLaMA2-13B, LLaMA3-8B, OPT-1.3b"),
        ("table-6", "llama2-7b", {}, ""),
        ("table-6", "llama2-7b", {"data": Path("folder")}, "the items of local tasks are not those of the paper"),
        ("table-6", "llama2-7b", {"limit": 4}, "only some items were evaluated"),
    ],
)
def test_numbers_of_another_protocol_are_not_comparable(name, model, changes, reason):
    settings = ProtocolSettings(**changes)
    dense = {"evaluation": {"seqlen": settings.eval_seqlen or 2048}}
    paper_model = paper_models()[model] if model else None
    assert why_not_comparable(find_published(name), paper_model, dense, settings) == reason


def test_a_claim_is_computed_from_the_measured_rows(tiny, wikitext):
    result = reproduce(find_published("eggs-2of4"), str(tiny()), small(wikitext))
    values = {cell.row: cell.measured for cell in result.numbers}
    ((statement, measured, paper),) = result.claims
    assert statement == "perplexity of EGGS-PTP below that of RIA"
    assert measured == pytest.approx(100 * (values["RIA",] - values["EGGS-PTP",]) / values["RIA",])
    assert paper == "6.69"
    assert (result.model, {cell.paper for cell in result.numbers}) == (None, {None})


@pytest.fixture
def scored(monkeypatch):
    """Replace zero-shot tasks, without lm-eval: of eight items, the n-th of the seven tasks has n right."""
    calls = []
    real_assess = runner.api.assess

    def fake_assess(model, *, tasks, data, limit, text, **settings):
        calls.append((tuple(tasks), data, limit))
        results = {
            name: TaskResult(name, "0", {"acc": (1.0,) * n + (0.0,) * (8 - n)}, 0) for n, name in enumerate(tasks, 1)
        }
        perplexity = runner.api.evaluate(model, text, **settings)
        return types.SimpleNamespace(results=types.SimpleNamespace(perplexity=perplexity, tasks=results))

    def assess(model, text=None, **settings):  # `api.evaluate` calls it too, without tasks
        function = fake_assess if settings.get("tasks") else real_assess
        return function(model, text=text, **settings)

    monkeypatch.setattr(runner.api, "assess", assess)
    monkeypatch.setattr(runner.api.evaluation, "assess", assess)
    return calls


def test_accuracies_are_per_cent_with_their_mean(tiny_as, wikitext, scored, tmp_path):
    item = find_published("table-6")
    model = tiny_as("llama2-7b")
    settings = small(wikitext)
    records = tmp_path / "records"
    result = reproduce(item, model, settings, records=records)
    assert set(scored) == {(PAPER_TASKS, None, None)}
    dense = [cell for cell in result.numbers if cell.row == ()]
    assert [cell.measured for cell in dense] == [100 * n / 8 for n in range(1, 8)] + [50]
    assert [cell.paper for cell in dense] == ["77.7", "62.8", "57.2", "69.2", "76.4", "43.4", "31.4", "57.9"]
    assert result.comparison.dense["tasks"]["boolq"]["acc"]["value"] == 1 / 8
    evaluations = len(scored)
    reproduce(item, model, settings, records=records)
    assert len(scored) == evaluations == 7
    grid, tasks = build_grid(item, model, settings)
    assert runner.count_recorded_runs(grid, model, records, tasks=tasks, **settings.evaluation(result.model)) == (7, 7)
    assert runner.count_recorded_runs(grid, model, records, **settings.evaluation(result.model)) == (0, 7)


def test_task_files_select_the_local_tasks(tmp_path):
    item = find_published("eggs-zeroshot-4of8")
    hub = build_grid(item, "demo", ProtocolSettings())[1]
    local = build_grid(item, "demo", ProtocolSettings(data=tmp_path, limit=4))[1]
    assert (tuple(hub.names), hub.data, hub.limit) == (PAPER_TASKS, None, None)
    assert (tuple(local.names), local.data, local.limit) == (LOCAL_TASKS, tmp_path, 4)
    (tmp_path / "rte.jsonl").write_text("{}")
    assert local.to_dict()["data"] == [str(tmp_path / "rte.jsonl")]  # so that records identify the files


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"table-11.*did you mean 'table-1.*expected eggs-2of4"):
        find_published("table-11")
    with pytest.raises(CalibrationError, match="table-2: Table 2 has no zero-shot tasks"):
        build_grid(find_published("table-2"), "demo", ProtocolSettings(data=tmp_path))
    with pytest.raises(RecipeError, match="eggs-speed: Table 5 is not a comparison"):
        build_grid(find_published("eggs-speed"), "demo", ProtocolSettings())


@pytest.mark.parametrize("name", ["table-2", "eggs-b"])
def test_a_calibration_text_of_the_user_is_packed_unless_set_otherwise(name):
    item = find_published(name)
    overrides = ("calibration.sampling=documents",)
    samplings = {
        "documents": [ProtocolSettings(), ProtocolSettings(overrides, calibration="my.txt")],
        "packed": [ProtocolSettings(calibration="my.txt")],
    }
    for sampling, all_settings in samplings.items():
        for settings in all_settings:
            assert build_grid(item, "model", settings)[0].recipe.calibration.sampling == sampling
    assert build_grid(item, "demo", ProtocolSettings())[0].recipe.calibration.text == "demo"


def test_stripes_in_closed_form():
    columns = torch.arange(1.0, 9).expand(6, 8)
    striped = stripes(columns * torch.tensor([1.0, -1]).repeat(4))
    assert (striped.by_input, striped.by_output) == pytest.approx((1, 0))
    assert (striped.input_ratio, striped.output_ratio) == pytest.approx((6, 0))
    # |W_ij| = a_i + b_j with variances 1 of b and 4 of a: shares 1/5 and 4/5.
    both = torch.tensor([[3.0, 5], [7, 9]])
    assert (stripes(both).by_input, stripes(both).by_output) == pytest.approx((1 / 5, 4 / 5))
    noise = stripes(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    assert (noise.input_ratio, noise.output_ratio) == pytest.approx((1, 1), abs=0.25)
    with pytest.raises(ModelError, match="same absolute value"):
        stripes(torch.tensor([[1.0, -1]]))


def test_the_heat_map_shows_the_matrix(tiny, tmp_path):
    name, weight = read_matrix(str(tiny()))
    assert name.endswith("self_attn.q_proj")
    assert read_matrix(str(tiny()), name)[1].equal(weight)
    picture = heat_map(name, weight)
    assert f"{stripes(weight).by_input:.2%} lies between inputs" in picture.description
    assert [path.name for path in picture.write(tmp_path)] == ["figure-1.svg", "figure-1.png"]
    assert (tmp_path / "figure-1.png").stat().st_size > 1000
    with pytest.raises(ModelError, match="has no matrix 'q_prj'"):
        read_matrix(str(tiny()), "q_prj")


def test_a_transposed_matrix_is_read_as_outputs_by_inputs(tiny):
    name, weight = read_matrix(str(tiny("gpt2")))
    config = json.loads((tiny("gpt2") / "config.json").read_text())
    assert weight.shape == (3 * config["n_embd"], config["n_embd"]), name


def test_tiles_are_averaged():
    magnitude = torch.arange(512.0 * 4).reshape(512, 4)
    pixels = tile_means(magnitude)
    assert pixels.shape == (256, 4)
    assert torch.equal(torch.from_numpy(pixels), (magnitude[0::2] + magnitude[1::2]) / 2)


@pytest.mark.parametrize("name", TABLES)
def test_calibration_windows_begin_as_those_of_the_papers_do(name):
    item = published()[name]
    for settings in (ProtocolSettings(), ProtocolSettings(calibration="my.txt"), ProtocolSettings(nsamples=3)):
        assert build_grid(item, "model", settings)[0].recipe.calibration.begin == "never"
    changed = ProtocolSettings(overrides=("calibration.begin=auto",))
    assert build_grid(item, "model", changed)[0].recipe.calibration.begin == "auto"


def test_a_reproduction_on_a_model_that_needs_begin_tokens(tiny_with_begin, wikitext):
    result = reproduce(find_published("eggs-2of4"), str(tiny_with_begin("gemma3")), small(wikitext))
    calibrations = [run["calibration"] for run in result.to_dict()["runs"] if run["calibration"]]
    assert {tuple(calibration["begin_tokens"]) for calibration in calibrations} == {()}
    assert (
        result.comparison.begin == "every window begins with the begin token: gemma3_text models are broken without it"
    )
    begins = [
        record["evaluation"]["begin_tokens"] for records in result.comparison.records.values() for record in records
    ]
    assert begins == [[256]] * len(begins)


def test_evaluation_windows_of_a_papers_model_begin_in_mid_text():
    llama = paper_models()["llama2-7b"]
    assert ProtocolSettings().evaluation(llama)["begin"] == "never"
    assert ProtocolSettings(text="data/wiki.test.raw").evaluation(llama)["begin"] == "never"
    assert ProtocolSettings(text="my.jsonl").evaluation(llama)["begin"] is None
    assert ProtocolSettings().evaluation(None)["begin"] is None
