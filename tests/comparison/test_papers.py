"""The papers' tables as data, and set beside what is run again."""

import dataclasses
import json
import types
from pathlib import Path

import pytest
import torch

from eggs_ptp.comparison import published as papers
from eggs_ptp.comparison import reproduction, run
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.heat_map import _tiles, heat_map, matrix_of, stripes
from eggs_ptp.comparison.published import find_published, known_model, published
from eggs_ptp.comparison.reproduction import Asked, grid_of, reproduce
from eggs_ptp.errors import CalibrationError, ModelError, RecipeError
from eggs_ptp.evaluation.harness import LOCAL, TASKS
from eggs_ptp.evaluation.zeroshot import TaskResult

TABLES = [name for name, item in published().items() if item.grid]
WHOLE = [name for name in TABLES if name.startswith("table-")]


@pytest.fixture
def tiny_is(tiny, monkeypatch):
    """`tiny_is("llama2-7b")`: the tiny model passes for that one, whose windows are as short as its context."""

    def passes_for(key, **changes):
        config = json.loads((tiny() / "config.json").read_text())
        models = dict(papers._models())
        shape = {name: config[name] for name in ("model_type", "hidden_size", "num_hidden_layers")}
        models[key] = dataclasses.replace(models[key], config=shape, **changes)
        monkeypatch.setattr(papers, "_models", lambda: models)
        monkeypatch.setattr(reproduction, "_SEQLEN", 32)
        return str(tiny())

    return passes_for


@pytest.fixture
def wiki(text_file, tmp_path):
    """The text under the name that WikiText-2's test split has."""
    path = tmp_path / "wiki.test.raw"
    path.write_text(text_file.read_text())
    return str(path)


def asked(text, **changes):
    small = {"calibration": text, "nsamples": 2, "seqlen": 32, "eval_seqlen": 32, "seeds": 1}
    return Asked(text=text, **{**small, **changes})


def test_all_that_was_asked_for_is_there_in_order():
    names = list(published())
    symmetric = ["figure-1", *(f"table-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 10))]
    eggs = ["eggs-2of4", "eggs-4of8", "eggs-b", "eggs-speed", "eggs-zeroshot-2of4", "eggs-zeroshot-4of8"]
    assert names == [*eggs, *symmetric]


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_rows_and_columns_are_those_of_the_grid(name):
    item = published()[name]
    grid = read_comparison(item.recipe)
    rows = {row.labels for row in grid.rows}
    assert {row for _, row, _ in item.numbers} - {()} <= rows
    assert {row for claim in item.claims for row in (claim.row, claim.than)} <= rows
    assert item.columns == ((*TASKS, "mean") if item.measure == "accuracy" else tuple(c.label for c in grid.columns))
    if name in WHOLE:
        assert {row for _, row, _ in item.numbers} - {()} == rows
        left_out = 6 if name == "table-6" else 0
        dense = any(row == () for _, row, _ in item.numbers)
        assert len(item.numbers) == (len(rows) + dense) * len(item.models) * len(item.columns) - left_out


@pytest.mark.parametrize("name", WHOLE)
def test_numbers_stand_in_the_paper_as_here(name, shared):
    text = (shared / "papers" / "symmetric-pruning.md").read_text(encoding="utf-8")
    words = set(
        text.replace("{", "\t").replace("}", "\t").replace("$", "\t").replace("^", "\t").replace("_", "\t").split()
    )
    item = published()[name]
    odd = {("table-2", "stochRIA"), ("table-9", "0.01"), ("table-6", "DSnoT"), ("table-6", "R²-DSnoT")}
    for row in {row for _, row, _ in item.numbers}:
        for model in item.models:
            found = [item.numbers.get((model.key, row, column)) for column in item.columns]
            if name == "table-3" and row == ():  # one cell over four columns, its digits apart
                assert set(found) <= {"5.47", "4.88", "6.14", "14.62"}
            elif any((name, label) in odd for label in row):
                assert {number for number in found if number} <= words, (row, model)
            else:
                assert "\t".join(found) in text, (row, model)


def test_numbers_keep_the_digits_that_were_printed():
    numbers = find_published("table-3").numbers, find_published("table-5").numbers
    assert numbers[0]["llama2-7b", ("Wanda",), "0.5"] == "7.60"
    assert numbers[1]["llama2-7b", ("Magnitude", "-"), ""] == "6.9e3"
    assert find_published("table-2").deviations["opt-1.3b", ("50%", "stochRIA", "10%"), ""] == "0.050"
    assert ("llama2-7b", ("Magnitude", "DSnoT"), "winogrande") not in find_published("table-6").numbers


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("meta-llama/Llama-2-7b-hf", {}, ("LLaMA2-7B", True)),
        ("models/Llama-2-7b-hf/", {}, ("LLaMA2-7B", True)),
        ("meta-llama/Llama-2-7b-chat-hf", {}, ("LLaMA2-7B", False)),
        ("huggyllama/llama-7b", {"max_position_embeddings": 2048}, None),
        ("meta-llama/Llama-2-7b-hf", {"num_hidden_layers": 2}, None),
    ],
)
def test_models_are_told_by_shape_and_then_by_name(name, changes, wanted):
    config = {**papers._models()["llama2-7b"].config, "hidden_act": "silu", **changes}
    found = known_model(name, config)
    assert (found and (found[0].title, found[1])) == wanted


def test_the_papers_number_stands_beside_ours(tiny_is, wiki):
    model = tiny_is("llama2-7b")
    found = reproduce(find_published("table-8"), model, asked(wiki))
    cells = {cell.row: cell for cell in found.numbers}
    assert [cells[row].paper for row in (("S1 (default)",), ("S2",), ("S4",))] == ["6.81", "6.99", "14.51"]
    assert found.why_not == ""
    assert f"{model} has the shape of LLaMA2-7B; the paper's numbers are of meta-llama/Llama-2-7b-hf" in found.remarks
    assert any(remark.startswith("calibrated on 2 windows of 32 tokens of ") for remark in found.remarks)
    for cell in cells.values():
        records = found.comparison.records.get((cell.row, cell.column)) or [found.comparison.dense]
        assert cell.ours == records[0]["perplexity"]
    listed = {tuple(cell["row"]): cell for cell in found.to_dict()["numbers"]}
    assert listed["S2",]["source"].startswith("Symmetric Pruning, arXiv:2501.18980, Table 8, row S2, model LLaMA2-7B")
    assert listed[()]["paper"] is None


@pytest.mark.parametrize(
    ("name", "model", "changes", "why_not"),
    [
        ("table-8", "llama2-7b", {}, ""),
        ("table-8", "llama2-7b", {"text": "wikitext2"}, ""),
        ("table-8", "llama2-7b", {"text": "my/wiki.test.raw"}, ""),
        ("table-8", "llama2-7b", {"text": "c4"}, "the paper's text is WikiText-2, not c4"),
        ("table-8", "llama2-7b", {"eval_seqlen": 16}, "the paper's windows are of 2048 tokens, not 16"),
        ("table-8", "llama2-7b", {"max_windows": 2}, "only the first 2 windows were taken"),
        ("table-8", None, {}, "the paper's models are LLaMA2-7B, LLaMA2-13B, LLaMA3-8B, OPT-1.3b"),
        ("table-8", "llama3.2-1b", {}, "the paper's models are LLaMA2-7B, LLaMA2-13B, LLaMA3-8B, OPT-1.3b"),
        ("table-6", "llama2-7b", {}, ""),
        ("table-6", "llama2-7b", {"data": Path("folder")}, "the items of local tasks are not those of the paper"),
        ("table-6", "llama2-7b", {"limit": 4}, "only some items were taken"),
    ],
)
def test_what_was_measured_another_way_stands_beside_nothing(name, model, changes, why_not):
    how = Asked(**changes)
    ran = types.SimpleNamespace(dense={"evaluation": {"seqlen": how.eval_seqlen or 2048}})
    known = (papers._models()[model], True) if model else None
    assert reproduction._why_not(find_published(name), known, ran, how) == why_not


def test_a_claim_is_held_against_our_rows(tiny, wiki):
    found = reproduce(find_published("eggs-2of4"), str(tiny()), asked(wiki))
    values = {cell.row: cell.ours for cell in found.numbers}
    ((words, ours, paper),) = found.claims
    assert words == "perplexity of EGGS-PTP below that of RIA"
    assert ours == pytest.approx(100 * (values["RIA",] - values["EGGS-PTP",]) / values["RIA",])
    assert paper == "6.69"
    assert (found.model, {cell.paper for cell in found.numbers}) == (None, {None})


@pytest.fixture
def scored(monkeypatch):
    """Tasks without lm-eval: the model gets as many of four items right as the place of the task among the seven."""
    calls = []

    def assess(model, *, tasks, data, limit, text, **more):
        calls.append((tuple(tasks), data, limit))
        results = {
            name: TaskResult(name, "0", {"acc": (1.0,) * n + (0.0,) * (8 - n)}, 0) for n, name in enumerate(tasks, 1)
        }
        perplexity = run.api.evaluate(model, text, **more)
        return types.SimpleNamespace(results=types.SimpleNamespace(perplexity=perplexity, tasks=results))

    monkeypatch.setattr(run.api, "assess", assess_of(assess, run.api.assess))
    return calls


def assess_of(fake, real):
    """`api.evaluate` goes through `assess` too."""
    return lambda model, text=None, **more: (
        fake(model, text=text, **more) if more.get("tasks") else real(model, text, **more)
    )


def test_accuracies_are_per_cent_with_their_mean(tiny_is, wiki, scored, tmp_path):
    model = tiny_is("llama2-7b")
    plain = asked(wiki)
    found = reproduce(find_published("table-6"), model, plain, records=tmp_path / "records")
    assert set(scored) == {(TASKS, None, None)}
    dense = [cell for cell in found.numbers if cell.row == ()]
    assert [cell.ours for cell in dense] == [100 * n / 8 for n in range(1, 8)] + [50]
    assert [cell.paper for cell in dense] == ["77.7", "62.8", "57.2", "69.2", "76.4", "43.4", "31.4", "57.9"]
    assert found.comparison.dense["tasks"]["boolq"]["acc"]["value"] == 1 / 8
    count = len(scored)
    reproduce(find_published("table-6"), model, plain, records=tmp_path / "records")
    assert len(scored) == count == 7
    grid, tasks = grid_of(find_published("table-6"), model, plain)
    how = plain.evaluation()
    assert run.recorded(grid, model, tmp_path / "records", tasks=tasks, **how) == (7, 7)
    assert run.recorded(grid, model, tmp_path / "records", **how) == (0, 7)


def test_task_files_are_those_of_the_local_tasks(tmp_path):
    item = find_published("eggs-zeroshot-4of8")
    found = [grid_of(item, "demo", each)[1] for each in (Asked(), Asked(data=tmp_path, limit=4))]
    assert [tuple(tasks.names) for tasks in found] == [TASKS, LOCAL]
    assert [(tasks.data, tasks.limit) for tasks in found] == [(None, None), (tmp_path, 4)]
    (tmp_path / "rte.jsonl").write_text("{}")
    assert found[1].to_dict()["data"] == [str(tmp_path / "rte.jsonl")]  # so that records know the files


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"table-11.*did you mean 'table-1.*there are eggs-2of4"):
        find_published("table-11")
    with pytest.raises(CalibrationError, match="table-2: Table 2 has no zero-shot tasks"):
        grid_of(find_published("table-2"), "demo", Asked(data=tmp_path))
    with pytest.raises(RecipeError, match="eggs-speed: Table 5 is no comparison"):
        grid_of(find_published("eggs-speed"), "demo", Asked())


def test_a_text_of_ones_own_is_packed_unless_told():
    for name in ("table-2", "eggs-b"):
        item = find_published(name)
        how = [Asked(), Asked(calibration="my.txt"), Asked(("calibration.sampling=documents",), calibration="my.txt")]
        sampling = [grid_of(item, "model", each)[0].recipe.calibration.sampling for each in how]
        assert sampling == ["documents", "packed", "documents"]
        assert grid_of(item, "demo", Asked())[0].recipe.calibration.text == "demo"


def test_stripes_in_closed_form():
    by_input = torch.arange(1.0, 9).expand(6, 8)
    found = stripes(by_input * torch.tensor([1.0, -1]).repeat(4))
    assert (found.by_input, found.by_output) == pytest.approx((1, 0))
    assert (found.input_ratio, found.output_ratio) == pytest.approx((6, 0))
    # |W_ij| = a_i + b_j with variances 1 and 4 over two and two values: shares 1/5 and 4/5.
    both = torch.tensor([[3.0, 5], [7, 9]])
    assert (stripes(both).by_input, stripes(both).by_output) == pytest.approx((1 / 5, 4 / 5))
    noise = stripes(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    assert (noise.input_ratio, noise.output_ratio) == pytest.approx((1, 1), abs=0.25)
    with pytest.raises(ModelError, match="same absolute value"):
        stripes(torch.tensor([[1.0, -1]]))


def test_the_picture_is_of_the_matrix(tiny, tmp_path):
    name, weight = matrix_of(str(tiny()))
    assert name.endswith("self_attn.q_proj")
    assert matrix_of(str(tiny()), name)[1].equal(weight)
    picture = heat_map(name, weight)
    assert f"{stripes(weight).by_input:.2%} lies between inputs" in picture.description
    assert [path.name for path in picture.write(tmp_path)] == ["figure-1.svg", "figure-1.png"]
    assert (tmp_path / "figure-1.png").stat().st_size > 1000
    with pytest.raises(ModelError, match="has no matrix 'q_prj'"):
        matrix_of(str(tiny()), "q_prj")


def test_a_transposed_matrix_is_turned(tiny):
    name, weight = matrix_of(str(tiny("gpt2")))
    stored = json.loads((tiny("gpt2") / "config.json").read_text())
    assert weight.shape == (3 * stored["n_embd"], stored["n_embd"]), name


def test_tiles_are_means():
    size = torch.arange(512.0 * 4).reshape(512, 4)
    tiles = _tiles(size)
    assert tiles.shape == (256, 4)
    assert torch.equal(torch.from_numpy(tiles), (size[0::2] + size[1::2]) / 2)


@pytest.fixture
def page(monkeypatch, tmp_path):
    """docs/reproduction.md as it were with these records."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    import reproduction_page

    def page_of(**records):
        for name, record in records.items():
            (tmp_path / f"{name.replace('_', '-')}.json").write_text(json.dumps(record))
        monkeypatch.setattr(reproduction_page, "RECORDS", tmp_path)
        return reproduction_page.reproduction()

    return page_of


def test_the_page_says_what_ran_and_what_awaits_what(page):
    text = page()
    assert text.count("Not run here on any model.") == len(published())
    for name, item in published().items():
        assert f"| [{name}](#{name}) | {item.paper.title}, {item.place} | 0 of " in text
        if item.measure != "speed":
            assert all(f"eggs reproduce {name} --model {model.hub} -o out/" in text for model in item.models)


def test_the_page_shows_what_a_record_has(page):
    cells = [
        {"row": row, "column": "m", "ours": 10 + n, "deviation": None} for n, row in enumerate([[], ["S2"], ["S3"]])
    ]
    cells.append({"row": ["S4"], "column": "m", "ours": None, "deviation": None})
    calibration = {"nsamples": 2, "seqlen": 32, "source": "a text"}
    evaluation = {"windows": 3, "protocol": "packed", "seqlen": 32}
    record = {"command": "eggs it", "model": "m", "measure": "perplexity", "heads": ["Strategy"], "columns": ["m"]}
    record |= {"numbers": cells, "claims": [], "not_run": ["S4 failed"], "runs": [{"calibration": calibration}]}
    record["dense"] = {"perplexity": 10.0, "evaluation": evaluation}
    text = page(table_8=record)
    assert "| [table-8](#table-8) | Symmetric Pruning, Table 8 | 2 of 4 | m | hub, GPU |" in text
    assert (
        "Run here: `eggs it`. Perplexity; calibrated on 2 windows of 32 tokens of a text; dense perplexity 10.00"
        in text
    )
    assert "| dense | 10.00 |\n| S2 | 11.00 |\n| S3 | 12.00 |\n| S4 | - |\n" in text
    assert "- S4 failed" in text
    assert text.count("Not run here on any model.") == len(published()) - 1
