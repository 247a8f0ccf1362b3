"""Comparison grids, run on a tiny model."""

import pytest

from eggs_ptp import api
from eggs_ptp.calibration import windows
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.runner import compare
from eggs_ptp.comparison.table import markdown
from eggs_ptp.engine import preparation
from eggs_ptp.engine.preparation import SharedInputs
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
def recorded_calls(monkeypatch):
    """The recipes of all calls of `api.prune`, and the models of all calls of `api.evaluate`."""
    calls = {"prune": [], "evaluate": []}
    prune = api.prune
    evaluate = api.evaluate
    monkeypatch.setattr(
        api,
        "prune",
        lambda model, out, recipe, **options: calls["prune"].append(recipe) or prune(model, out, recipe, **options),
    )
    monkeypatch.setattr(
        api, "evaluate", lambda model, **options: calls["evaluate"].append(model) or evaluate(model, **options)
    )
    return calls


def perplexities(comparison):
    return {key: [record["perplexity"] for record in records] for key, records in comparison.records.items()}


def test_results_are_those_of_prune_and_evaluate(tiny, grid, evaluation, tmp_path):
    requested = grid("magnitude ria_cp", "0.5 2:4", ["steps.select.group=row"], seeds=2)
    comparison = compare(requested, str(tiny()), **evaluation)
    assert comparison.dense["perplexity"] == api.evaluate(tiny(), **evaluation).value
    assert comparison.columns == ("0.5", "2:4")
    assert list(comparison.undefined) == [(("ria_cp",), "0.5")]
    assert {key: len(records) for key, records in comparison.records.items()} == {
        (("magnitude",), "0.5"): 1,
        (("magnitude",), "2:4"): 1,
        (("ria_cp",), "2:4"): 2,
    }
    for (row, column), records in comparison.records.items():
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
    requested = grid("wanda ria eggs", "2:4", [f"calibration.{changed}"], seeds=2)
    captures = []
    tokenised = []
    capture = preparation.capture_block_inputs
    tokenise = windows.tokenise
    monkeypatch.setattr(preparation, "capture_block_inputs", lambda *args: captures.append(args) or capture(*args))
    monkeypatch.setattr(windows, "tokenise", lambda *args: tokenised.append(args) or tokenise(*args))
    shared = SharedInputs()
    for index, cell in enumerate(requested.cells()):
        folders = [tmp_path / f"{index}-{kind}" for kind in ("alone", "shared")]
        run_alone = api.prune(str(tiny()), folders[0], cell.recipe)
        run_shared = api.prune(str(tiny()), folders[1], cell.recipe, shared=shared)
        weights_alone, weights_shared = ((folder / "model.safetensors").read_bytes() for folder in folders)
        assert weights_alone == weights_shared
        assert run_alone.calibration == run_shared.calibration
        for matrix_alone, matrix_shared in zip(run_alone.matrices, run_shared.matrices, strict=True):
            assert matrix_alone["output_error"] == matrix_shared["output_error"]
    # Six runs alone, of which two capture inputs twice (once for the permutations that are folded), and one per seed.
    assert (len(captures), len(tokenised)) == (6 + 2 + 2, 6 + 2)
    captures.clear()
    compare(requested, str(tiny()), **evaluation)
    assert len(captures) == 2


def test_recorded_runs_are_not_repeated(tiny, grid, evaluation, recorded_calls, tmp_path):
    progress = []
    settings = {
        **evaluation,
        "records": tmp_path / "records",
        "progress": lambda *arguments: progress.append(arguments),
    }
    first = compare(grid("magnitude wanda", "0.5", seeds=2), str(tiny()), **settings)
    assert (len(recorded_calls["prune"]), len(recorded_calls["evaluate"])) == (3, 4)
    assert len(list((tmp_path / "records").iterdir())) == 4
    assert [(done, total) for done, total, _ in progress] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert progress[0][2].startswith("dense: ")
    assert progress[3][2].startswith("wanda at 0.5, seed 1: ")
    progress.clear()
    repeated = compare(grid("magnitude wanda", "0.5", seeds=2), str(tiny()), **settings)
    assert (len(recorded_calls["prune"]), len(recorded_calls["evaluate"])) == (3, 4)
    assert repeated == first
    assert all(description.endswith("as recorded") for *_, description in progress)


def test_records_are_found_by_the_run_and_not_by_its_label(tiny, grid, evaluation, recorded_calls, tmp_path, text_file):
    settings = {**evaluation, "records": tmp_path}
    first = compare(grid("wanda", "0.5", seeds=1), str(tiny()), **settings)
    path = tmp_path / "table.toml"
    path.write_text('heads = ["a", "b"]\nrows = [{ label = ["x", "y"], method = "wanda", pattern = 0.5 }]\n')
    relabelled = read_comparison(path, seeds=1, calibration=text_file, nsamples=4, seqlen=32)
    comparison = compare(relabelled, str(tiny()), **settings)
    assert len(recorded_calls["prune"]) == 1
    assert perplexities(comparison) == {(("x", "y"), tiny().name): perplexities(first)[("wanda",), "0.5"]}
    assert comparison.columns == (tiny().name,)


def test_runs_with_broken_records_are_repeated_and_changed_runs_have_other_records(
    tiny, grid, evaluation, recorded_calls, tmp_path
):
    settings = {**evaluation, "records": tmp_path}
    first = compare(grid("magnitude", "0.5"), str(tiny()), **settings)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-10])
    repeated = compare(grid("magnitude", "0.5"), str(tiny()), **settings)
    assert (len(recorded_calls["prune"]), len(recorded_calls["evaluate"])) == (2, 4)
    assert perplexities(repeated) == perplexities(first)
    compare(grid("magnitude", "0.5", ["steps.select.group=row"]), str(tiny()), **settings)
    assert (len(recorded_calls["prune"]), len(recorded_calls["evaluate"])) == (3, 5)
    compare(grid("magnitude", "0.5"), str(tiny()), **{**settings, "max_windows": 4})
    compare(grid("magnitude", "0.5"), str(tiny(seed=1)), **settings)
    assert (len(recorded_calls["prune"]), len(recorded_calls["evaluate"])) == (5, 9)


def test_the_evaluation_is_that_of_the_grid_unless_an_argument_changes_it(tiny, tmp_path, text_file):
    path = tmp_path / "table.toml"
    path.write_text(
        f'method = "magnitude"\n[evaluation]\ntext = "{text_file}"\nprotocol = "packed"\nseqlen = 32\nmax_windows = 3\n'
    )
    grid = read_comparison(path)
    comparison = compare(grid, str(tiny()))
    expected = api.evaluate(tiny(), str(text_file), seqlen=32, max_windows=3)
    (record,) = comparison.records[("magnitude",), "2:4"]
    assert comparison.dense["perplexity"] == expected.value
    for evaluation in (comparison.dense["evaluation"], record["evaluation"]):
        assert (evaluation["seqlen"], evaluation["windows"]) == (32, 3)
    dense = compare(grid, str(tiny()), seqlen=16, max_windows=5).dense
    assert dense["perplexity"] == api.evaluate(tiny(), str(text_file), seqlen=16, max_windows=5).value


def test_a_failed_run_becomes_a_remark_and_the_others_are_run(tiny, grid, evaluation, monkeypatch, tmp_path):
    prune = api.prune

    def failing(model, out, recipe, **options):
        if recipe.method == "wanda" and recipe.seed == 1:
            raise NumericsError("model.layers.0: NaN")
        if recipe.method == "ria":
            raise ZeroDivisionError("division\nby zero")
        return prune(model, out, recipe, **options)

    monkeypatch.setattr(api, "prune", failing)
    settings = {**evaluation, "records": tmp_path}
    comparison = compare(grid("wanda ria magnitude", "2:4 3:5", seeds=3), str(tiny()), **settings)
    assert comparison.failed[("wanda",), "2:4"] == "wanda at 2:4, seed 1 failed: model.layers.0: NaN"
    assert comparison.failed[("ria",), "2:4"] == "ria at 2:4, seed 0 failed: ZeroDivisionError: division by zero"
    assert "32 input features cannot be cut into groups of 5" in comparison.failed[("magnitude",), "3:5"]
    assert {key: len(records) for key, records in comparison.records.items()} == {
        (("wanda",), "2:4"): 1,
        (("magnitude",), "2:4"): 1,
    }
    monkeypatch.setattr(api, "prune", prune)
    comparison = compare(grid("wanda ria magnitude", "2:4", seeds=3), str(tiny()), **settings)
    assert (comparison.failed, len(comparison.records[("wanda",), "2:4"])) == ({}, 3)


def test_an_interruption_leaves_the_records(tiny, grid, evaluation, monkeypatch, tmp_path):
    def interrupted(done, total, description):
        if done == 2:
            raise KeyboardInterrupt

    settings = {**evaluation, "records": tmp_path / "records"}
    with pytest.raises(KeyboardInterrupt):
        compare(grid("wanda", "2:4", seeds=3), str(tiny()), **settings, progress=interrupted)
    assert len(list((tmp_path / "records").glob("*.json"))) == 3
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_errors_that_concern_every_run_are_raised(tiny, grid, evaluation, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        compare(grid("wanda", "2:4"), "nowhere", **evaluation)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        compare(grid("wanda", "2:4"), str(tiny()), **evaluation, records=tmp_path / "file")


def test_all_runs_have_the_begin_rule_that_the_dense_model_decides(
    tiny_with_begin, grid, evaluation, monkeypatch, tmp_path
):
    rules = []
    evaluate = api.evaluate
    monkeypatch.setattr(
        api, "evaluate", lambda model, **options: rules.append(options["begin"]) or evaluate(model, **options)
    )
    requested = grid("magnitude wanda", "0.5", seeds=1)
    comparison = compare(requested, str(tiny_with_begin("gemma3")), records=tmp_path / "records", **evaluation)
    assert rules == ["auto", "always", "always"]
    runs = [comparison.dense, *(record for records in comparison.records.values() for record in records)]
    assert [run["evaluation"]["begin_tokens"] for run in runs] == [[256]] * 3
    why = "every window begins with the begin token: gemma3_text models are broken without it"
    assert comparison.begin == why
    assert f"- {why}" in markdown(comparison)
    assert comparison.ratio_to_dense(("wanda",), "0.5").pairs == 8
    compare(requested, str(tiny_with_begin("gemma3")), records=tmp_path / "records", **evaluation)
    assert len(rules) == 3
    never = compare(
        requested, str(tiny_with_begin("gemma3")), begin="never", records=tmp_path / "records", **evaluation
    )
    assert rules[3:] == ["never"] * 3
    assert never.begin == ""
    assert never.dense["perplexity"] != comparison.dense["perplexity"]


def test_runs_of_a_tokenizer_without_begin_tokens_are_those_of_ever(tiny, grid, evaluation):
    comparison = compare(grid("magnitude", "0.5", seeds=1), str(tiny("gemma3")), **evaluation)
    (record,) = comparison.records[("magnitude",), "0.5"]
    assert (comparison.begin, record["evaluation"]["begin_tokens"]) == ("", [])


def test_documents_in_a_comparison(tiny_with_begin, grid, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('"a document"\n"another one"\n')
    comparison = compare(grid("magnitude", "0.5", seeds=1), str(tiny_with_begin("gemma3")), text=str(path))
    (record,) = comparison.records[("magnitude",), "0.5"]
    assert record["evaluation"]["protocol"] == comparison.dense["evaluation"]["protocol"] == "documents"
