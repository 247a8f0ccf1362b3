import shutil

import numpy as np
import pytest

from eggs_ptp.calibration import hub


def test_shows_what_happens_to_every_matrix(eggs, tiny, text_file):
    ran = eggs("plan", tiny(), "--calibration", text_file, "--nsamples", 4, "--exclude", "*.1.mlp.down_proj")
    assert ran.code == 0
    words = " ".join(ran.out.split())
    assert "0-1.self_attn.q_proj 2 32 x 32 attention_in 2:4 eggs+ cross, gram, input_norm, tokens" in words
    assert "1.mlp.down_proj 1 32 x 64 mlp not pruned: excluded by '*.1.mlp.down_proj'" in words
    assert "(llama, 2 blocks, 14 matrices) on cpu in float32: 13 to 2:4 by eggs+, 1 left dense" in words
    assert f"calibration: 4 windows of 128 tokens from {text_file}" in words
    assert " of memory in addition to the libraries estimate: " in words
    assert " on an idle machine (" in words


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "channel permutations: folded into the weights"),
        (("--permutation", "gather"), "channel permutations: stored in eggs/orders.safetensors"),
        (("--permutation", "mask"), "channel permutations: used to choose the masks only"),
    ],
)
def test_shows_how_permutations_are_applied(eggs, tiny, arguments, line):
    assert line in eggs("plan", tiny(), *arguments).out


@pytest.mark.parametrize("head_dim", [4, 12])
def test_heads_narrower_than_a_group_stay_as_they_are_and_the_rest_is_permuted(
    eggs, tiny, text_file, tmp_path, head_dim
):
    model, flags = tiny(head_dim=head_dim), ("--pattern", "4:8", "--calibration", text_file, "--nsamples", 4)
    line = (
        "not permuted: the inputs of 2 matrices such as model.layers.0.self_attn.o_proj, whose heads cannot be divided"
    )
    assert line in eggs("plan", model, *flags).out
    pruned = eggs("prune", model, *flags, "-o", tmp_path / "out", "--json").json
    assert {matrix["name"].rpartition(".")[2]: matrix["permuted"] for matrix in pruned["matrices"]} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), True),
        "o_proj": False,
    }
    assert all(matrix["in_order"] for matrix in pruned["matrices"])
    assert eggs("verify", tmp_path / "out", "--against", model).code == 0


def test_permutations_are_not_mentioned_where_there_are_none(eggs, tiny):
    assert "permutation" not in eggs("plan", tiny(), "--method", "wanda").out
    assert eggs("plan", tiny(), "--permutation", "roll").code == 2


def test_a_method_without_statistics_needs_no_text(eggs, tiny):
    ran = eggs("plan", tiny(), "--method", "magnitude", "--pattern", "0.5")
    assert "14 to 0.5 by magnitude" in ran.out
    assert "none" in ran.out
    assert "calibration: none needed" in ran.out


def test_the_number_of_windows_in_a_file_is_shown(eggs, tiny, tmp_path):
    path = tmp_path / "windows.npy"
    np.save(path, np.zeros((24, 48), int))
    ran = eggs("plan", tiny(), "--calibration", path, "--nsamples", 3)
    assert f"calibration: 24 windows of 48 tokens from {path}" in " ".join(ran.out.split())
    refused = eggs("plan", tiny(), "--calibration", path, "--set", "calibration.skip_first=48")
    assert "calibration.skip_first = 48 leaves nothing of windows of 48 tokens" in refused.error
    assert "24 windows" not in eggs("plan", tiny(), "--calibration", path, "--method", "magnitude").out


def test_as_json(eggs, tiny):
    plan = eggs("plan", tiny("qwen3"), "--recipe", "/dev/null", "--seqlen", 64, "--json").json
    assert (plan["model_type"], plan["blocks"], plan["seqlen"]) == ("qwen3", 2, 64)
    assert len(plan["matrices"]) == 14
    assert {matrix["pattern"] for matrix in plan["matrices"]} == {"2:4"}


def test_the_default_calibration_is_named(eggs, tiny):
    assert "128 windows of 128 tokens from C4 (hub)" in eggs("plan", tiny()).out


def test_shows_how_windows_begin(eggs, tiny, tiny_with_begin, text_file):
    options = ("--calibration", text_file, "--nsamples", 4)
    line = f"calibration: 4 windows of 128 tokens from {text_file}"
    with_begin = tiny_with_begin()
    assert f"{line}, each with the begin token first" in " ".join(eggs("plan", with_begin, *options).out.split())
    never = ("--set", "calibration.begin=never")
    for model, more in ((tiny(), ()), (with_begin, never)):
        words = " ".join(eggs("plan", model, *options, *more).out.split())
        assert line in words
        assert "begin token" not in words
    assert eggs("plan", with_begin, *options, "--json").json["begin_tokens"] == [256]
    assert eggs("plan", with_begin, *options, *never, "--json").json["begin_tokens"] == []
    assert eggs("plan", with_begin, "--method", "magnitude", "--json").json["begin_tokens"] == []


def test_a_model_without_a_tokenizer_is_refused_where_text_is_needed(eggs, tiny, text_file, tmp_path):
    model = shutil.copytree(tiny(), tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer that transformers can load" in eggs("plan", model, "--calibration", text_file).error
    assert eggs("plan", model, "--method", "magnitude").code == 0


def test_a_text_that_cannot_be_reached_is_noticed(eggs, tiny, text_file, monkeypatch):
    monkeypatch.setattr(hub, "hub_problem", lambda name: f"no route to {name}")
    warning = "cannot be read from the hub (no route to {}): prune needs --calibration FILE"
    assert warning.format("allenai/c4") in eggs("plan", tiny()).out
    assert warning.format("owner/set") in eggs("plan", tiny(), "--calibration", "owner/set").out
    assert "cannot be read" not in eggs("plan", tiny(), "--calibration", text_file).out
    assert "cannot be read" not in eggs("plan", tiny(), "--method", "magnitude").out
