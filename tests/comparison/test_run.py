"""Grids run on a tiny model."""

import pytest

from eggs_ptp import api
from eggs_ptp.calibration import windows
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.run import compare
from eggs_ptp.engine import run as engine
from eggs_ptp.engine.shared import Shared
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError


@pytest.fixture
def evaluation(text_file):
    return {"text": str(text_file), "seqlen": 32, "max_windows": 8}


@pytest.fixture
def grid(text_file):
    """`grid("wanda", "2:4", seeds=1)`."""

    def of(methods, patterns, overrides=(), **changes):
        settings = {"calibration": text_file, "nsamples": 4, "seqlen": 32, **changes}
        return read_comparison(None, overrides, methods=methods.split(), patterns=patterns.split(), **settings)

    return of


@pytest.fixture
def counted(monkeypatch):
    """What has been run: the methods of all calls of `api.prune`, and the models of those of `api.evaluate`."""
    calls = {"prune": [], "evaluate": []}
    prune, evaluate = api.prune, api.evaluate
    monkeypatch.setattr(
        api,
        "prune",
        lambda model, out, recipe, **more: calls["prune"].append(recipe) or prune(model, out, recipe, **more),
    )
    monkeypatch.setattr(
        api, "evaluate", lambda model, **more: calls["evaluate"].append(model) or evaluate(model, **more)
    )
    return calls


def values(found):
    return {place: [record["perplexity"] for record in records] for place, records in found.records.items()}


def test_what_it_finds_is_what_prune_and_evaluate_find(tiny, grid, evaluation, tmp_path):
    found = compare(grid("magnitude ria_cp", "0.5 2:4", ["steps.select.group=row"], seeds=2), str(tiny()), **evaluation)
    assert found.dense["perplexity"] == api.evaluate(tiny(), **evaluation).value
    assert found.columns == ("0.5", "2:4")
    assert list(found.left_out) == [(("ria_cp",), "0.5")]
    assert {place: len(records) for place, records in found.records.items()} == {
        (("magnitude",), "0.5"): 1,
        (("magnitude",), "2:4"): 1,
        (("ria_cp",), "2:4"): 2,
    }
    for (row, column), records in found.records.items():
        for record in records:
            out = tmp_path / f"{row[0]}-{column}-{record['seed']}"
            recipe = tmp_path / "recipe.toml"
            recipe.write_text(record["recipe"])
            run = api.prune(str(tiny()), out, read_comparison(recipe).recipe)
            assert record["perplexity"] == api.evaluate(out, **evaluation).value
            assert record["recipe_sha256"] == run.recipe_sha256
            assert record["density"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("changed", ["statistics=group", "propagate=dense"])
def test_sharing_the_dense_inputs_and_the_windows_changes_no_bit(
    tiny, grid, evaluation, monkeypatch, tmp_path, changed
):
    asked = grid("wanda ria eggs", "2:4", [f"calibration.{changed}"], seeds=2)
    captures, drawn = [], []
    capture, tokenise = engine.capture, windows.tokenise
    monkeypatch.setattr(engine, "capture", lambda *given: captures.append(given) or capture(*given))
    monkeypatch.setattr(windows, "tokenise", lambda *given: drawn.append(given) or tokenise(*given))
    shared = Shared()
    for place, cell in enumerate(asked.cells()):
        outs = [tmp_path / f"{place}-{kind}" for kind in ("alone", "shared")]
        alone = api.prune(str(tiny()), outs[0], cell.recipe)
        together = api.prune(str(tiny()), outs[1], cell.recipe, shared=shared)
        one, two = ((out / "model.safetensors").read_bytes() for out in outs)
        assert one == two
        assert alone.calibration == together.calibration
        assert [m["output_error"] for m in alone.matrices] == [m["output_error"] for m in together.matrices]
    # Six runs alone, two of which take the inputs twice (first for the orders that are folded), and one for each seed.
    assert (len(captures), len(drawn)) == (6 + 2 + 2, 6 + 2)
    captures.clear()
    compare(asked, str(tiny()), **evaluation)
    assert len(captures) == 2


def test_what_is_recorded_is_not_run_again(tiny, grid, evaluation, counted, tmp_path):
    told = []
    settings = {**evaluation, "records": tmp_path / "records", "progress": lambda *what: told.append(what)}
    first = compare(grid("magnitude wanda", "0.5", seeds=2), str(tiny()), **settings)
    assert (len(counted["prune"]), len(counted["evaluate"])) == (3, 4)
    assert len(list((tmp_path / "records").iterdir())) == 4
    assert [(done, total) for done, total, _ in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert told[0][2].startswith("dense: ")
    assert told[3][2].startswith("wanda at 0.5, seed 1: ")
    told.clear()
    again = compare(grid("magnitude wanda", "0.5", seeds=2), str(tiny()), **settings)
    assert (len(counted["prune"]), len(counted["evaluate"])) == (3, 4)
    assert again == first
    assert all(what.endswith("as recorded") for *_, what in told)


def test_records_are_found_by_what_was_run_and_not_by_its_label(tiny, grid, evaluation, counted, tmp_path, text_file):
    settings = {**evaluation, "records": tmp_path}
    first = compare(grid("wanda", "0.5", seeds=1), str(tiny()), **settings)
    path = tmp_path / "table.toml"
    path.write_text('heads = ["a", "b"]\nrows = [{ label = ["x", "y"], method = "wanda", pattern = 0.5 }]\n')
    other = read_comparison(path, seeds=1, calibration=text_file, nsamples=4, seqlen=32)
    found = compare(other, str(tiny()), **settings)
    assert len(counted["prune"]) == 1
    assert values(found) == {(("x", "y"), tiny().name): values(first)[("wanda",), "0.5"]}
    assert found.columns == (tiny().name,)


def test_broken_records_are_done_again_and_changed_runs_are_others(tiny, grid, evaluation, counted, tmp_path):
    settings = {**evaluation, "records": tmp_path}
    first = compare(grid("magnitude", "0.5"), str(tiny()), **settings)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-10])
    again = compare(grid("magnitude", "0.5"), str(tiny()), **settings)
    assert (len(counted["prune"]), len(counted["evaluate"])) == (2, 4)
    assert values(again) == values(first)
    compare(grid("magnitude", "0.5", ["steps.select.group=row"]), str(tiny()), **settings)
    assert (len(counted["prune"]), len(counted["evaluate"])) == (3, 5)
    compare(grid("magnitude", "0.5"), str(tiny()), **{**settings, "max_windows": 4})
    compare(grid("magnitude", "0.5"), str(tiny(seed=1)), **settings)
    assert (len(counted["prune"]), len(counted["evaluate"])) == (5, 9)


def test_the_evaluation_is_the_grids_where_no_argument_says_otherwise(tiny, tmp_path, text_file):
    path = tmp_path / "table.toml"
    path.write_text(
        f'method = "magnitude"\n[evaluation]\ntext = "{text_file}"\nprotocol = "packed"\nseqlen = 32\nmax_windows = 3\n'
    )
    grid = read_comparison(path)
    found = compare(grid, str(tiny()))
    expected = api.evaluate(tiny(), str(text_file), seqlen=32, max_windows=3)
    (record,) = found.records[("magnitude",), "2:4"]
    assert found.dense["perplexity"] == expected.value
    assert {(entry["evaluation"]["seqlen"], entry["evaluation"]["windows"]) for entry in (found.dense, record)} == {
        (32, 3)
    }
    dense = compare(grid, str(tiny()), seqlen=16, max_windows=5).dense
    assert dense["perplexity"] == api.evaluate(tiny(), str(text_file), seqlen=16, max_windows=5).value


def test_a_run_that_fails_is_remarked_and_the_others_are_run(tiny, grid, evaluation, monkeypatch, tmp_path):
    prune = api.prune

    def failing(model, out, recipe, **more):
        if recipe.method == "wanda" and recipe.seed == 1:
            raise NumericsError("model.layers.0: NaN")
        if recipe.method == "ria":
            raise ZeroDivisionError("division\nby zero")
        return prune(model, out, recipe, **more)

    monkeypatch.setattr(api, "prune", failing)
    settings = {**evaluation, "records": tmp_path}
    found = compare(grid("wanda ria magnitude", "2:4 3:5", seeds=3), str(tiny()), **settings)
    assert found.failed[("wanda",), "2:4"] == "wanda at 2:4, seed 1 failed: model.layers.0: NaN"
    assert found.failed[("ria",), "2:4"] == "ria at 2:4, seed 0 failed: ZeroDivisionError: division by zero"
    assert "32 input features cannot be cut into groups of 5" in found.failed[("magnitude",), "3:5"]
    assert {place: len(records) for place, records in found.records.items()} == {
        (("wanda",), "2:4"): 1,
        (("magnitude",), "2:4"): 1,
    }
    monkeypatch.setattr(api, "prune", prune)
    found = compare(grid("wanda ria magnitude", "2:4", seeds=3), str(tiny()), **settings)
    assert (found.failed, len(found.records[("wanda",), "2:4"])) == ({}, 3)


def test_an_interruption_leaves_the_records(tiny, grid, evaluation, monkeypatch, tmp_path):
    def interrupted(done, total, what):
        if done == 2:
            raise KeyboardInterrupt

    settings = {**evaluation, "records": tmp_path / "records"}
    with pytest.raises(KeyboardInterrupt):
        compare(grid("wanda", "2:4", seeds=3), str(tiny()), **settings, progress=interrupted)
    assert len(list((tmp_path / "records").glob("*.json"))) == 3
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_what_no_run_could_do_is_raised(tiny, grid, evaluation, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        compare(grid("wanda", "2:4"), "nowhere", **evaluation)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        compare(grid("wanda", "2:4"), str(tiny()), **evaluation, records=tmp_path / "file")
