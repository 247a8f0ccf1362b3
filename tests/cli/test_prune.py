import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp.cli.prune import _rows


def edited(source, folder, **changes):
    """A copy of a model with changes to its config."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_says_what_it_will_do_does_it_and_reports(eggs, tiny, text_file, tmp_path):
    ran = eggs("prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 4, "--seqlen", 64)
    assert ran.code == 0
    first, *_, last = ran.err.splitlines()
    assert first.startswith(f"{tiny()} (llama, 2 blocks, 14 matrices) on cpu in float32: 14 to 2:4 by eggs+")
    assert last.startswith("prune: 2/2, ")
    words = " ".join(ran.out.split())
    assert "model.layers.0-1.mlp.down_proj 2 2:4 50.0% eggs+ 0." in words
    assert f"Prove it: eggs verify {tmp_path / 'out'} --against {tiny()}" in words
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
    more = ("--method", "ria", "--set", "steps.score.alpha=0.7", "--set", "calibration.sampling=packed", "--json")
    found = eggs(
        "prune", tiny(), "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 4, *flags, *more
    ).json
    patterns = {matrix["name"].rpartition(".")[2]: matrix["pattern"] for matrix in found["matrices"]}
    assert patterns == {"q_proj": "2:4", "k_proj": "4:8", "v_proj": "2:4"}
    assert (found["recipe"]["seed"], found["recipe"]["method"]) == (5, "ria")
    assert found["recipe"]["steps"]["score"]["alpha"] == 0.7


@pytest.mark.parametrize("orders", [None, "fold", "gather", "mask"])
def test_orders_are_folded_unless_asked(eggs, tiny, text_file, tmp_path, orders):
    flags = ("--calibration", text_file, "--nsamples", 4, "--method", "ria_cp", "--json")
    found = eggs("prune", tiny(), "-o", tmp_path / "out", *flags, *(("--orders", orders) if orders else ())).json
    assert found["orders"] == (orders or "fold")
    assert {matrix["in_order"] for matrix in found["matrices"]} == {orders in (None, "fold")}
    assert eggs("verify", tmp_path / "out", "--against", tiny()).code == 0


def test_the_report_folds_blocks_and_shows_each_automatic_choice():
    records = [
        {"name": f"model.layers.{block}.{path}", "pattern": "2:4", "density": 0.5, "method": "eggs", **more}
        for block, blocks in ((0, 3), (1, 7))
        for path, more in (("a", {"output_error": 0.1 * blocks, "B": blocks}), ("b", {"output_error": None}))
    ]
    assert _rows(records) == [
        ["model.layers.0-1.a", "2", "2:4", "50.0%", "eggs", "0.5000", "0.7000", "3 7"],
        ["model.layers.0-1.b", "2", "2:4", "50.0%", "eggs", "-", "-", ""],
    ]


def test_an_existing_folder_is_replaced_only_when_told(eggs, tiny, tmp_path):
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
    "hub name": (lambda tiny, path: "nobody/nothing", "nobody/nothing: no such folder, and the hub does not give it"),
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
    given = tmp_path / "given"
    given.mkdir()
    error = eggs("prune", make(tiny, given), "-o", tmp_path / "out", "--method", "magnitude").error
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["given"]


def test_refuses_pickles_and_adapters(eggs, tiny, tmp_path):
    given = edited(tiny(), tmp_path / "given")
    (given / "model.safetensors").rename(given / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in eggs("prune", given, "-o", tmp_path / "out").error
    (given / "config.json").rename(given / "adapter_config.json")
    assert "this is an adapter" in eggs("prune", given, "-o", tmp_path / "out").error
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
    "unstructured": (("--pattern", "0.5"), "needs an N:M pattern"),
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
    given = edited(tiny(), tmp_path / "given")
    weights = load_file(given / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, given / "model.safetensors", metadata={"format": "pt"})
    error = eggs("prune", given, "-o", tmp_path / "out", "--calibration", text_file, "--nsamples", 2).error
    assert "model.layers.1" in error
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_cannot_be_written(eggs, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = eggs("prune", tiny(), "-o", tmp_path / "file/out", "--method", "magnitude").error
    assert "file" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_several_values_that_of_least_perplexity_is_kept(eggs, tiny, text_file, tmp_path):
    model = tiny("llama")
    common = ("--method", "wanda", "--pattern", "0.5", "--calibration", text_file, "--nsamples", 4, "--seqlen", 32)
    asked = ("--try", "pattern=0.9,0.1,0.5", "--try-text", text_file)
    found = eggs("prune", model, *common, *asked, "-o", tmp_path / "out", "--json").json
    perplexities = list(found["tried"].values())
    assert set(found["tried"]) == {"pattern=0.9", "pattern=0.1", "pattern=0.5"}
    assert perplexities == sorted(perplexities)
    assert found["recipe"]["pattern"] == next(iter(found["tried"])).removeprefix("pattern=")
    for label, value in found["tried"].items():
        eggs("prune", model, *common, "--set", label, "-o", tmp_path / label)
        again = eggs("evaluate", tmp_path / label, "--text", text_file, "--json").json
        assert again["perplexity"]["value"] == pytest.approx(value)


@pytest.mark.parametrize(
    ("tried", "line"),
    [
        (("--try", "steps.score.alpha"), "expected KEY=VALUE,VALUE,..."),
        (("--try", "steps.score.alpha=0.5,"), "expected KEY=VALUE,VALUE,..."),
        (("--try", "seed=1,2", "--revision", "main"), "not possible with --revision"),
        (("--try", "pattern=0.5,3:2"), "3:2"),
    ],
)
def test_values_that_cannot_be_tried_are_refused(eggs, tiny, text_file, tmp_path, tried, line):
    ran = eggs("prune", tiny("llama"), "--method", "ria", "--calibration", text_file, *tried, "-o", tmp_path / "out")
    assert (ran.code, line in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()
