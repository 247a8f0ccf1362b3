import numpy as np


def test_says_what_happens_to_every_matrix(eggs, tiny, text_file):
    ran = eggs("plan", tiny(), "--calibration", text_file, "--nsamples", 4, "--exclude", "*.1.mlp.down_proj")
    assert ran.code == 0
    words = " ".join(ran.out.split())
    assert "model.layers.0-1.self_attn.q_proj 2 32 x 32 attention_in 2:4 eggs+ cross, gram, input_norm, tokens" in words
    assert "model.layers.1.mlp.down_proj 1 32 x 64 mlp dense: excluded by '*.1.mlp.down_proj'" in words
    assert "(llama, 2 blocks, 14 matrices) on cpu in float32: 13 to 2:4 by eggs+, 1 left dense" in words
    assert f"calibration: 4 windows of 128 tokens from {text_file}" in words
    assert "MB on top of the libraries" in words


def test_says_what_becomes_of_orders(eggs, tiny):
    assert "channel orders: folded into the weights" in eggs("plan", tiny()).out
    assert "channel orders: kept in eggs/orders.safetensors" in eggs("plan", tiny(), "--orders", "gather").out
    assert "channel orders: used for the masks alone" in eggs("plan", tiny(), "--orders", "mask").out
    assert "channel orders" not in eggs("plan", tiny(), "--method", "wanda").out
    assert eggs("plan", tiny(), "--orders", "roll").code == 2


def test_a_method_without_statistics_needs_no_text(eggs, tiny):
    ran = eggs("plan", tiny(), "--method", "magnitude", "--pattern", "0.5")
    assert "14 to 0.5 by magnitude" in ran.out
    assert "weights alone" in ran.out
    assert "calibration: none needed" in ran.out


def test_a_file_of_windows_says_how_many_there_are(eggs, tiny, tmp_path):
    path = tmp_path / "windows.npy"
    np.save(path, np.zeros((24, 48), int))
    found = eggs("plan", tiny(), "--calibration", path, "--nsamples", 3)
    assert f"calibration: 24 windows of 48 tokens from {path}" in " ".join(found.out.split())
    refused = eggs("plan", tiny(), "--calibration", path, "--set", "calibration.skip_first=48")
    assert "calibration.skip_first = 48 leaves nothing of windows of 48 tokens" in refused.error
    assert "24 windows" not in eggs("plan", tiny(), "--calibration", path, "--method", "magnitude").out


def test_as_json(eggs, tiny):
    found = eggs("plan", tiny("qwen3"), "--recipe", "/dev/null", "--seqlen", 64, "--json").json
    assert (found["model_type"], found["blocks"], found["seqlen"]) == ("qwen3", 2, 64)
    assert len(found["matrices"]) == 14
    assert {matrix["pattern"] for matrix in found["matrices"]} == {"2:4"}


def test_without_calibration_it_names_the_default(eggs, tiny):
    assert "128 windows of 128 tokens from C4 (hub)" in eggs("plan", tiny()).out
