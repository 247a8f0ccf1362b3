import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp.cli.prune import calibration_tokens, matrix_table


def edited(source, folder, **changes):
    """A copy of a model with changes to its config."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_prints_the_plan_prunes_and_prints_the_record(eggs, tiny, text_file, tmp_path):
    ran = eggs("prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 4, "--seqlen", 64)
    assert ran.code == 0
    first, *_, last = ran.err.splitlines()
    assert first.startswith(f"{tiny()} (llama, 2 blocks, 14 matrices) on cpu in float32: 14 to 2:4 by eggs+")
    assert last.startswith("prune: 2/2, ")
    words = " ".join(ran.out.split())
    assert "matrices of model.layers.0-1 count output error B" in words
    assert "mlp.down_proj 2 0." in words
    assert "Every matrix: pattern 2:4, kept 50.0%, method eggs+." in words
    assert "no comparison of methods" in words
    assert "256 calibration tokens are thin (the papers use 262,144)" in words
    evaluate, verify = ran.out.splitlines()[-2:]
    assert evaluate == f"  eggs evaluate {tmp_path / 'out'} --against {tiny()}"
    assert verify == f"  eggs verify {tmp_path / 'out'} --against {tiny()}"
    assert eggs("verify", tmp_path / "out", "--against", tiny()).code == 0


def test_as_json_is_the_record(eggs, tiny, tmp_path):
    out = tmp_path / "out"
    ran = eggs("prune", tiny(), "-o", out, "--method", "magnitude", "--pattern", "1:4", "--json")
    assert ran.err == ""
    stored = json.loads((out / "eggs.json").read_text())
    assert ran.json == {**stored, "output": str(out)}
    assert {matrix["density"] for matrix in ran.json["matrices"]} == {0.25}


def test_flags_reach_the_recipe(eggs, tiny, text_file, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('method = "wanda"\n[[targets]]\nmatch = "*.k_proj"\npattern = "4:8"\n')
    flags = ("--recipe", recipe, "--include", "*.self_attn.*", "--exclude", "*.o_proj", "--seed", 5)
    overrides = ("--method", "ria", "--set", "steps.score.alpha=0.7", "--set", "calibration.sampling=packed", "--json")
    record = eggs(
        "prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 4, *flags, *overrides
    ).json
    patterns = {matrix["name"].rpartition(".")[2]: matrix["pattern"] for matrix in record["matrices"]}
    assert patterns == {"q_proj": "2:4", "k_proj": "4:8", "v_proj": "2:4"}
    assert (record["recipe"]["seed"], record["recipe"]["method"]) == (5, "ria")
    assert record["recipe"]["steps"]["score"]["alpha"] == 0.7


@pytest.mark.parametrize("permutation", [None, "fold", "gather", "mask"])
def test_permutations_are_folded_by_default(eggs, tiny, text_file, tmp_path, permutation):
    flags = ("--calibration", text_file, "--nsamples", 4, "--method", "ria_cp", "--json")
    if permutation:
        flags += ("--permutation", permutation)
    record = eggs("prune", tiny(), "-o", tmp_path / "out", *flags).json
    assert record["orders"] == (permutation or "fold")
    assert {matrix["in_order"] for matrix in record["matrices"]} == {permutation in (None, "fold")}
    assert eggs("verify", tmp_path / "out", "--against", tiny()).code == 0


def test_rows_merge_blocks_and_show_the_automatic_choice_of_each():
    records = [
        {"name": f"model.layers.{block}.{path}", "pattern": "2:4", "density": 0.5, "method": "eggs", **entries}
        for block, count in ((0, 3), (1, 7))
        for path, entries in (("a", {"output_error": 0.1 * count, "B": count}), ("b", {"output_error": None}))
    ]
    table = matrix_table(records)
    assert table.columns[0] == "matrices of model.layers.0-1"
    assert table.rows == [
        ["a", "2", "2:4", "50.0%", "eggs", "0.300 to 0.700", "3 to 7"],
        ["b", "2", "2:4", "50.0%", "eggs", "-", ""],
    ]
    assert [note.partition(":")[0] for note in table.notes] == ["Output error", "B"]


def test_densities_are_a_range_and_nothing_is_explained_that_is_not_shown():
    records = [
        {"name": f"h.{block}.fc", "pattern": "0.5", "density": 0.4 + 0.1 * block, "method": "ria", "output_error": None}
        for block in range(3)
    ]
    table = matrix_table(records)
    assert table.columns == ["matrices", ">count", "pattern", ">kept", "method", ">output error"]
    assert table.rows == [["h.0-2.fc", "3", "0.5", "40.0% to 60.0%", "ria", "-"]]
    assert table.notes == []


@pytest.mark.parametrize(
    ("calibration", "tokens"),
    [(None, 0), ({"nsamples": 8, "seqlen": 2048}, 16_384), ({"source": "an older version"}, None)],
)
def test_the_calibration_tokens_of_a_record(calibration, tokens):
    assert calibration_tokens(calibration) == tokens


def test_the_table_of_a_run_fits_80_columns(eggs, tiny, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ("prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 2, "--seqlen", 64)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[targets]]\nmatch = "*.0.mlp.up_proj"\nmethod = "wanda"\npattern = "4:8"\n')
    rows = [line for line in eggs(*command, "--recipe", rules).out.splitlines() if "_proj  " in line]
    assert len(rows) == 8
    assert max(map(len, rows)) <= 80
    assert rows[0].split()[0] == "0-1.self_attn.q_proj"


def test_an_existing_folder_is_replaced_only_with_overwrite(eggs, tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ("prune", tiny(), "-o", out, "--method", "magnitude")
    assert "--overwrite" in eggs(*command).error
    assert "--overwrite replaces model folders only" in eggs(*command, "--overwrite").error
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    (out / "config.json").write_text("{}")
    assert eggs(*command, "--overwrite").code == 0
    assert (out / "eggs.json").exists()


MODELS = {
    "unknown": (lambda tiny, path: path / "nowhere", "nowhere: no such folder"),
    "hub name": (lambda tiny, path: "nobody/nothing", "nobody/nothing: no such folder, and it cannot be downloaded"),
    "no config": (lambda tiny, path: path, "it has no config.json"),
    "gptq": (
        lambda tiny, path: edited(tiny(), path / "m", quantization_config={"quant_method": "gptq"}),
        "already quantised (gptq)",
    ),
    "architecture": (lambda tiny, path: edited(tiny(), path / "m", model_type="t5"), "t5 is an encoder-decoder model"),
    "width": (
        lambda tiny, path: tiny("llama", intermediate_size=66),
        "mlp.down_proj: 66 input features cannot be cut into groups of 4",
    ),
}


@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS.keys())
def test_refuses_models(eggs, tiny, tmp_path, make, message):
    folder = tmp_path / "model"
    folder.mkdir()
    error = eggs("prune", make(tiny, folder), "-o", tmp_path / "out", "--method", "magnitude").error
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_refuses_pickles_and_adapters(eggs, tiny, tmp_path):
    folder = edited(tiny(), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in eggs("prune", folder, "-o", tmp_path / "out").error
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "this is an adapter" in eggs("prune", folder, "-o", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


FLAGS = {
    "method": (("--method", "egs"), "did you mean 'eggs'"),
    "option": (("--set", "steps.score.alhpa=1"), "did you mean 'alpha'"),
    "option value": (("--set", "steps.select.B=-1"), "steps.select.B"),
    "key": (("--set", "patern=2:4"), "did you mean 'pattern'"),
    "set": (("--set", "seed"), "expected KEY=VALUE"),
    "all pruned": (("--pattern", "0:4"), "keeps 0 of 4"),
    "more than all": (("--pattern", "4:2"), "keeps 4 of 2"),
    "words": (("--pattern", "two:four"), "'two:four' is not understood"),
    "unstructured": (("--pattern", "0.5"), "methods that serve it: alps, sparsegpt, wanda, ria, magnitude"),
    "per cent": (("--pattern", "50%"), "'50%' is not understood"),
    "glob": (("--exclude", "*.dwon_proj"), "exclude '*.dwon_proj'"),
    "nothing left": (("--exclude", "*"), "nothing would be pruned"),
    "window": (("--seqlen", "4096"), "longer than the model's context of 128"),
    "samples": (("--nsamples", "0"), "nsamples"),
    "device": (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
}


@pytest.mark.parametrize(("flags", "message"), FLAGS.values(), ids=FLAGS.keys())
@pytest.mark.parametrize("verb", ["prune", "plan"])
def test_refuses_flags(eggs, tiny, text_file, tmp_path, verb, flags, message):
    output = ("-o", tmp_path / "out") if verb == "prune" else ()
    error = eggs(verb, tiny(), *output, "--calibration", text_file, *flags).error
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pattern = "2:4"\nmethud = "ria"\n', "recipe.toml, line 2: methud: unknown key, did you mean 'method'"),
        ("pattern = 2:4\n", "recipe.toml, line 1, column"),
        ('[[targets]]\nmatch = "*.nothing"\nskip = true\n', "targets[0].match '*.nothing'"),
    ],
)
def test_refuses_recipes(eggs, tiny, text_file, tmp_path, text, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    error = eggs("prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--recipe", recipe).error
    assert message in error
    assert not (tmp_path / "out").exists()


TEXTS = {
    "missing": (None, "there is no file"),
    "empty": (b"", "is empty"),
    "latin": ("café".encode("latin-1") * 500, "is not UTF-8"),
    "short": (b"too short", "token"),
}


@pytest.mark.parametrize(("content", "message"), TEXTS.values(), ids=TEXTS.keys())
def test_refuses_calibration_texts(eggs, tiny, tmp_path, content, message):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    error = eggs("prune", tiny(), "-o", tmp_path / "out", "--calibration", text).error
    assert message in error
    assert str(text) in error
    assert not (tmp_path / "out").exists()


def test_refuses_broken_weights(eggs, tiny, text_file, tmp_path):
    folder = edited(tiny(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    error = eggs("prune", folder, "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 2).error
    assert "model.layers.1" in error
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_cannot_be_written(eggs, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = eggs("prune", tiny(), "-o", tmp_path / "file/out", "--method", "magnitude").error
    assert "file" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_candidate_with_the_lowest_perplexity_is_kept(eggs, tiny, text_file, tmp_path):
    model = tiny("llama")
    common = ("--method", "wanda", "--pattern", "0.5", "--calibration", text_file, "--nsamples", 4, "--seqlen", 32)
    trials = ("--try", "pattern=0.9,0.1,0.5", "--try-text", text_file)
    record = eggs("prune", model, *common, *trials, "-o", tmp_path / "out", "--json").json
    perplexities = list(record["tried"].values())
    assert set(record["tried"]) == {"pattern=0.9", "pattern=0.1", "pattern=0.5"}
    assert perplexities == sorted(perplexities)
    assert record["recipe"]["pattern"] == next(iter(record["tried"])).removeprefix("pattern=")
    for override, perplexity in record["tried"].items():
        eggs("prune", model, *common, "--set", override, "-o", tmp_path / override)
        evaluation = eggs("evaluate", tmp_path / override, "--text", text_file, "--json").json
        assert evaluation["perplexity"]["value"] == pytest.approx(perplexity)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--try", "steps.score.alpha"), "expected KEY=VALUE,VALUE,..."),
        (("--try", "steps.score.alpha=0.5,"), "expected KEY=VALUE,VALUE,..."),
        (("--try", "seed=1,2", "--revision", "main"), "not possible with --revision"),
        (("--try", "pattern=0.5,3:2"), "3:2"),
    ],
)
def test_impossible_trials_are_refused(eggs, tiny, text_file, tmp_path, arguments, line):
    ran = eggs(
        "prune", tiny("llama"), "--method", "ria", "--calibration", text_file, *arguments, "-o", tmp_path / "out"
    )
    assert (ran.code, line in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_base_model_of_a_local_folder_is_an_option(eggs, tiny, tmp_path):
    command = ("prune", tiny(), "--method", "magnitude", "-o", tmp_path / "out")
    assert eggs(*command, "--base-model", "a/b/c").code == 2
    assert not (tmp_path / "out").exists()
    assert eggs(*command, "--base-model", "owner/name").code == 0
    assert "\nbase_model: owner/name\n" in (tmp_path / "out" / "README.md").read_text()
