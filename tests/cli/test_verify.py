import pytest
from safetensors.torch import load_file, save_file

TOUCHED = "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    from eggs_ptp import api

    folder = tmp_path_factory.mktemp("made") / "out"
    api.prune(str(tiny()), folder, method="magnitude")
    return folder


@pytest.fixture
def spoilt(made, tmp_path):
    """A copy in which one weight that was pruned has come back."""
    for file in made.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(made)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    row = weights[f"{TOUCHED}.weight"][0]
    row[row == 0] = 1.0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_all_is_well(eggs, made, tiny):
    ran = eggs("verify", made, "--against", tiny())
    assert (ran.code, ran.err) == (0, "")
    words = " ".join(ran.out.split())
    assert "model.layers.0-1.mlp.up_proj 2 ok 2:4, 0.5000 non-zero" in words
    assert words.endswith("out: ok")


def test_names_what_fails_and_exits_with_1(eggs, spoilt, tiny):
    ran = eggs("verify", spoilt, "--against", tiny())
    assert (ran.code, ran.err) == (1, "")
    words = " ".join(ran.out.split())
    assert f"{TOUCHED} 1 FAILED 8 of 128 groups keep more than 2:4" in words
    assert f"2 of 20 checks failed: {TOUCHED}, kept weights" in words


def test_as_json(eggs, spoilt):
    ran = eggs("verify", spoilt, "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    assert [check["name"] for check in ran.json["checks"] if not check["ok"]] == [TOUCHED]


def test_a_folder_of_others_needs_a_pattern(eggs, tiny):
    assert "pass --pattern" in eggs("verify", tiny()).error
    assert eggs("verify", tiny(), "--pattern", "2:4").code == 1
