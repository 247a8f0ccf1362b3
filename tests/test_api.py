"""The verbs in Python."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eggs_ptp
from eggs_ptp import api
from eggs_ptp.engine import preparation
from eggs_ptp.engine.preparation import SharedInputs
from eggs_ptp.errors import (
    CalibrationError,
    CheckpointError,
    EggsError,
    ModelError,
    NumericsError,
    PatternError,
    RecipeError,
)
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe


@pytest.fixture
def settings(text_file):
    return {"method": "wanda", "calibration": text_file, "nsamples": 4, "seqlen": 32}


@pytest.fixture
def windows(tmp_path):
    """`windows(3, 32)`: a file of ready token windows."""

    def file(nsamples, seqlen, high=258):
        path = tmp_path / "windows.npy"
        np.save(path, np.random.default_rng(0).integers(0, high, (nsamples, seqlen)))
        return path

    return file


def test_the_verbs_are_the_packages():
    assert eggs_ptp.prune is api.prune
    assert eggs_ptp.evaluate is api.evaluate
    assert eggs_ptp.load is api.load


def test_a_plan_is_made_from_the_same_words_as_a_run(tiny, settings):
    plan = api.plan(str(tiny()), pattern="4:8", **settings)
    assert (plan.nsamples, plan.seqlen, plan.calibration) == (4, 32, str(settings["calibration"]))
    assert {str(matrix.resolved.pattern) for matrix in plan.matrices} == {"4:8"}


def test_what_is_returned_is_what_is_recorded(tiny, settings, tmp_path):
    record = api.prune(
        str(tiny()), tmp_path / "out", seed=3, steps={"score": {"name": "ria", "alpha": 0.7}}, **settings
    )
    stored = json.loads((tmp_path / "out" / "eggs.json").read_text())
    assert stored == json.loads(json.dumps(record.to_dict()))
    assert stored["source"] == {"model": str(tiny()), "revision": None, "commit": None, "model_type": "llama"}
    assert stored["recipe"]["steps"] == {"score": {"name": "ria", "alpha": 0.7}}
    assert stored["recipe_sha256"] == Recipe.model_validate(stored["recipe"]).digest()
    assert (stored["calibration"]["nsamples"], stored["calibration"]["seqlen"]) == (4, 32)
    assert (stored["recipe"]["seed"], stored["dtype"]) == (3, "float32")
    assert len(stored["matrices"]) == 14
    assert {"embedding", "observe", "score", "select", "write"} <= stored["stages"].keys()
    assert sum(stored["stages"].values()) <= stored["seconds"]
    assert stored["peak_memory_bytes"] >= stored["baseline_memory_bytes"] > 0


def test_a_recipe_and_settings_say_the_same(tiny, settings, text_file, tmp_path):
    api.prune(str(tiny()), tmp_path / "settings", **settings)
    recipe = Recipe(method="wanda", calibration=CalibrationSpec(text=str(text_file), nsamples=4, seqlen=32))
    api.prune(str(tiny()), str(tmp_path / "recipe"), recipe)
    one, two = (tmp_path / name / "model.safetensors" for name in ("settings", "recipe"))
    assert one.read_bytes() == two.read_bytes()


def test_either_a_recipe_or_settings(tiny, tmp_path):
    with pytest.raises(RecipeError, match="expected a recipe or settings, got both: a recipe and method"):
        api.prune(str(tiny()), tmp_path / "out", Recipe(), method="wanda")


def test_token_windows_need_no_tokenizer_and_bring_their_own_shape(tiny, windows, tmp_path):
    model = shutil.copytree(tiny(), tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    record = api.prune(str(model), tmp_path / "out", method="wanda", calibration=windows(3, 48))
    assert (record.calibration["nsamples"], record.calibration["seqlen"]) == (3, 48)
    assert api.verify(tmp_path / "out", str(model)).ok
    with pytest.raises(ModelError, match="no tokenizer"):
        api.prune(str(model), tmp_path / "text", method="wanda", calibration=__file__)


def test_windows_longer_than_the_context_are_refused(tiny, windows, tmp_path):
    with pytest.raises(CalibrationError, match="windows of 129 tokens are longer than the model's context of 128"):
        api.prune(str(tiny()), tmp_path / "out", method="wanda", calibration=windows(2, 129))


def test_tokens_that_the_model_does_not_have_are_refused(tiny, windows, tmp_path):
    with pytest.raises(CalibrationError, match="outside the model's vocabulary of 258"):
        api.prune(str(tiny()), tmp_path / "out", method="wanda", calibration=windows(8, 64, high=1000))


def test_runs_may_share_what_does_not_depend_on_the_method(tiny, settings, tmp_path, monkeypatch):
    captures = []
    real = preparation.capture_block_inputs
    monkeypatch.setattr(preparation, "capture_block_inputs", lambda *args: captures.append(args) or real(*args))
    shared = SharedInputs()
    for method in ("wanda", "ria_cp"):
        changed = {**settings, "method": method}
        api.prune(str(tiny()), tmp_path / f"{method}-alone", **changed)
        api.prune(str(tiny()), tmp_path / f"{method}-shared", shared=shared, **changed)
        alone, together = (tmp_path / f"{method}-{kind}" / "model.safetensors" for kind in ("alone", "shared"))
        assert alone.read_bytes() == together.read_bytes()
    assert len(captures) == 1 + 1 + 2  # shared, and alone, where finding the permutation takes a run of its own
    api.prune(str(tiny()), tmp_path / "other-seed", shared=shared, seed=1, **settings)
    assert len(captures) == 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "nowhere"}, ModelError, "nowhere: no such folder"),
        ({"method": "wnda"}, RecipeError, "did you mean 'wanda'"),
        ({"steps": {"score": {"beta": 1}}}, RecipeError, "steps.score.beta"),
        ({"pattern": "4:2"}, RecipeError, "pattern 4:2 keeps 4 of 2"),
        ({"method": "eggs", "pattern": "0.5"}, PatternError, "needs an N:M pattern such as 2:4, not 0.5"),
        ({"pattern": "3:5"}, PatternError, "32 input features cannot be cut into groups of 5"),
        ({"calibration": "nowhere.txt"}, CalibrationError, "nowhere.txt"),
        ({"seqlen": 129}, RecipeError, "seqlen 129 is longer than the model's context of 128 tokens"),
        ({"exclude": ("*.nothing",)}, RecipeError, "exclude '*.nothing' matches none of the 14 matrices"),
        ({"exclude": ("*",)}, RecipeError, "nothing would be pruned"),
        ({"dtype": "int8"}, ModelError, "dtype: expected auto, float32, bfloat16, float16, got 'int8'"),
        ({"device": "abacus"}, ModelError, "device 'abacus' cannot be used here"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tiny, settings, tmp_path, monkeypatch, changes, error, message
):
    monkeypatch.chdir(tmp_path)
    arguments = {"model": str(tiny()), **settings, **changes}
    with pytest.raises(error, match=re.escape(message)) as caught:
        api.prune(output=tmp_path / "new" / "out", **arguments)
    assert isinstance(caught.value, EggsError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, so asking for one is no error")
def test_a_device_that_is_not_there_is_named(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"device 'cuda' cannot be used here \(.*\); see eggs doctor") as caught:
        api.prune(str(tiny()), tmp_path / "out", method="magnitude", device="cuda")
    assert "\n" not in str(caught.value)


def test_an_output_is_replaced_only_when_told(tiny, tmp_path):
    api.prune(str(tiny()), tmp_path / "out", method="magnitude")
    with pytest.raises(CheckpointError, match="not empty; pass --overwrite"):
        api.prune(str(tiny()), tmp_path / "out", method="magnitude", pattern="1:4")
    api.prune(str(tiny()), tmp_path / "out", method="magnitude", pattern="1:4", overwrite=True)
    assert (load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] != 0).sum() == 512


def test_half_precision_runs_store_the_same_type(tiny, settings, tmp_path):
    record = api.prune(str(tiny(dtype=torch.bfloat16)), tmp_path / "out", dtype="bfloat16", **settings)
    assert record.dtype == "bfloat16"
    assert api.verify(tmp_path / "out", str(tiny(dtype=torch.bfloat16))).ok


def test_a_model_is_loaded_in_float32_on_the_cpu_unless_asked(tiny):
    model, tokenizer = api.load(tiny(dtype=torch.bfloat16), device="cpu")
    assert (model.dtype, model.training) == (torch.float32, False)
    assert tokenizer.decode(tokenizer("abc").input_ids) == "abc"
    assert api.load(str(tiny()), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_the_protocol_follows_the_kind_of_text(tiny, text_file, tmp_path):
    packed = api.evaluate(tiny(), str(text_file), max_windows=2)
    assert (packed.protocol, packed.seqlen, packed.windows, packed.tokens) == ("packed", 128, 2, 254)
    lines = tmp_path / "text.jsonl"
    lines.write_text("".join(json.dumps({"body": f"document {i}"}) + "\n" for i in range(3)))
    documents = api.evaluate(tiny(), str(lines), text_field="body")
    assert (documents.protocol, documents.windows, documents.tokens) == ("documents", 3, 3 * 11)
    joined = api.evaluate(tiny(), str(lines), text_field="body", protocol="packed", seqlen=16)
    assert (joined.protocol, joined.windows) == ("packed", 2)


def test_pruning_changes_the_perplexity(tiny, text_file, tmp_path):
    api.prune(str(tiny()), tmp_path / "out", method="magnitude")
    dense, pruned = (api.evaluate(folder, str(text_file), max_windows=4).value for folder in (tiny(), tmp_path / "out"))
    assert dense != pytest.approx(pruned, rel=1e-3)


def test_the_built_in_text_belongs_to_the_demo_and_what_was_made_from_it(tiny, tmp_path, monkeypatch):
    folder = tiny()
    monkeypatch.setattr(api.inputs, "model_folder", lambda: folder)
    monkeypatch.setattr(api.inputs, "builtin_documents", lambda split: [f"the text for {split} " * 100])
    assert api.find("demo") == folder
    record = api.prune("demo", tmp_path / "out", method="wanda", nsamples=2, seqlen=32)
    assert record.source["model"] == "demo"
    assert record.calibration["text_tokens"] == len("the text for calibration " * 100)
    for model in ("demo", tmp_path / "out"):
        assert api.evaluate(model).windows == len("the text for evaluation " * 100) // 128
    assert api.verify(tmp_path / "out", "demo").ok
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(CalibrationError, match="wikitext"):
        api.evaluate(other)


def test_the_source_survives_the_run(tiny, tmp_path):
    source = shutil.copytree(tiny(), tmp_path / "model")
    for output in (source, source / "inside" / "it"):
        with pytest.raises(CheckpointError, match="inside the model's own folder"):
            api.prune(str(source), output, method="magnitude", overwrite=True)
    assert sorted(path.name for path in source.iterdir()) == sorted(path.name for path in tiny().iterdir())


@pytest.mark.parametrize("inside", ["model", "text.txt", "masks.npz"])
def test_an_output_that_holds_what_a_run_reads_is_not_replaced(tiny, tmp_path, text_file, inside):
    output = shutil.copytree(tiny(), tmp_path / "out")
    source = shutil.copytree(tiny(), output / "model") if inside == "model" else tiny()
    shutil.copy(text_file, output / "text.txt")
    (output / "masks.npz").write_bytes(b"masks")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    read = {"text.txt": "calibration", "masks.npz": "mask"}
    settings = {read[inside]: str(output / inside)} if inside in read else {}
    message = rf"out: contains .*{inside}, which would be deleted; write to another folder"
    with pytest.raises(CheckpointError, match=message):
        api.prune(str(source), output, method="wanda", overwrite=True, **settings)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"])
def test_what_is_taken_over_must_be_finite(tiny, tmp_path, name):
    source = shutil.copytree(tiny(), tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors[name][0] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericsError, match=f"^{re.escape(name)}: the weight holds NaN or infinity"):
        api.prune(str(source), tmp_path / "out", method="magnitude")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["missing.txt", "folder", "a/b.txt"])
def test_a_text_that_cannot_be_there_is_refused_before_the_model_is_built(tiny, tmp_path, monkeypatch, text):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api.pruning, "load_skeleton", lambda *_, **__: pytest.fail("the model was built"))
    for verb in (
        lambda **given: api.plan(str(tiny()), **given),
        lambda **given: api.prune(str(tiny()), "out", **given),
    ):
        with pytest.raises(CalibrationError, match=r"^calibration\.text: "):
            verb(method="wanda", calibration=text)


@pytest.mark.parametrize("verb", [api.prune, api.plan, api.evaluate, api.assess, api.load, api.verify, eggs_ptp.pack])
def test_signatures_spell_out_every_parameter(verb):
    kinds = {parameter.kind for parameter in inspect.signature(verb).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    described = inspect.getdoc(verb).partition("Args:")[2]
    for name in inspect.signature(verb).parameters:
        assert f"\n    {name}: " in described, name


@pytest.mark.parametrize("verb", [api.prune, api.plan])
def test_the_keys_of_a_recipe_are_parameters(verb):
    assert set(Recipe.model_fields) <= set(inspect.signature(verb).parameters)


@pytest.mark.parametrize("memory", ["8GiB", "8192 MiB", 8 << 30])
def test_memory_is_a_size_as_on_the_command_line(tiny, settings, memory):
    plan = api.plan(str(tiny()), memory=memory, **settings)
    assert 6 << 30 < plan.budget.allowance < 8 << 30


@pytest.mark.parametrize("memory", ["much", "-3GiB", 0])
def test_a_memory_limit_that_is_no_size_is_refused(tiny, settings, memory):
    with pytest.raises(RecipeError, match="expected a size such as 8GiB or 800MB, got "):
        api.plan(str(tiny()), memory=memory, **settings)


def test_an_unknown_setting_is_refused_by_name(tiny):
    with pytest.raises(TypeError, match="patern"):
        api.plan(str(tiny()), patern="2:4")


def test_calibration_windows_begin_with_the_begin_token_that_the_tokenizer_writes(
    tiny_with_begin, tiny, settings, tmp_path
):
    model = str(tiny_with_begin())
    runs = {begin: api.prune(model, tmp_path / begin, begin=begin, **settings) for begin in ("auto", "never")}
    assert {begin: run.calibration["begin_tokens"] for begin, run in runs.items()} == {"auto": [256], "never": []}
    stored = json.loads((tmp_path / "never" / "eggs.json").read_text())
    assert (stored["recipe"]["calibration"]["begin"], stored["calibration"]["begin_tokens"]) == ("never", [])
    assert runs["auto"].calibration["sha256"] != runs["never"].calibration["sha256"]
    plain = [
        api.prune(str(tiny()), tmp_path / f"plain-{begin}", begin=begin, **settings) for begin in ("auto", "never")
    ]
    assert plain[0].calibration == plain[1].calibration
    weights = [(tmp_path / f"plain-{begin}" / "model.safetensors").read_bytes() for begin in ("auto", "never")]
    assert weights[0] == weights[1]
