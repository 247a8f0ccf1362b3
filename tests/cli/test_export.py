"""`eggs export`: both formats, masks, and refused input."""

import json

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    from eggs_ptp import api

    folder = tmp_path_factory.mktemp("pruned") / "out"
    api.prune(str(tiny()), folder, method="magnitude")
    return folder


def test_packed_and_dense_again(eggs, pruned, tmp_path):
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    ran = eggs("export", pruned, "--format", "packed", "-o", packed)
    assert ran.code == 0
    assert "14 matrices" in ran.out
    assert "53.1% of the dense" in ran.out
    assert f"Written to {packed}, packed" in ran.out
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["format"] == 2
    report = eggs("export", packed, "--format", "dense", "--output", dense, "--json").json
    assert report == {
        "folder": str(packed),
        "output": str(dense),
        "form": "dense",
        "matrices": 14,
        "dense_bytes": report["dense_bytes"],
        "packed_bytes": report["dense_bytes"] * 17 // 32,
        "rounded": 0,
    }
    assert (dense / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_quantised_values(eggs, pruned, tmp_path, values):
    ran = eggs("export", pruned, "--format", "packed", "-o", tmp_path / "packed", "--values", values)
    assert ran.code == 0
    assert f"{values} values: 0 matrices were on this quantisation grid already, 14 were rounded" in ran.out
    eggs("export", tmp_path / "packed", "--format", "dense", "-o", tmp_path / "dense")
    flags = ("--format", "packed", "-o", tmp_path / "again", "--values", values)
    report = eggs("export", tmp_path / "dense", *flags, "--json").json
    assert report["rounded"] == 0
    assert eggs("verify", tmp_path / "again").code == 0
    refused = eggs("export", tmp_path / "packed", "--format", "dense", "-o", tmp_path / "x", "--values", values)
    assert "--values quantises while packing" in refused.error


def test_an_error_about_a_packed_folder_is_one_line(eggs, pruned, tmp_path):
    packed = tmp_path / "packed"
    eggs("export", pruned, "--format", "packed", "-o", packed)
    path = packed / "config.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
    for verb in (
        ("generate", packed, "--prompt", "x"),
        ("verify", packed),
        ("evaluate", packed, "--text", packed / "README.md"),
    ):
        error = eggs(*verb).error
        assert error.count("packed format 9, this version reads formats 1, 2, 3; update eggs-ptp") == 1
        assert error.count(str(packed)) == 1
        assert "Error:" not in error.removeprefix("error:")


def test_packed_and_dense_generate_the_same_text(eggs, pruned, tmp_path):
    eggs("export", pruned, "--format", "packed", "-o", tmp_path / "packed")
    texts = [
        eggs("generate", folder, "--prompt", "Hello", "--temperature", "0", "--tokens", "12").out
        for folder in (pruned, tmp_path / "packed")
    ]
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_a_packed_folder_is_not_pruned(eggs, pruned, tmp_path):
    eggs("export", pruned, "--format", "packed", "-o", tmp_path / "packed")
    error = eggs("prune", tmp_path / "packed", "-o", tmp_path / "out", "--method", "magnitude").error
    assert "a packed folder; make it dense first: eggs export" in error


def test_masks(eggs, pruned, tmp_path):
    ran = eggs("export", pruned, "--masks", tmp_path / "masks.safetensors")
    assert ran.out == f"14 masks written to {tmp_path / 'masks.safetensors'}\n"
    assert len(load_file(tmp_path / "masks.safetensors")) >= 14


@pytest.mark.parametrize(
    "flags",
    [(), ("--format", "packed"), ("-o", "x"), ("--masks", "m", "-o", "x"), ("--masks", "m", "--format", "dense")],
)
def test_exactly_one_thing_is_written(eggs, pruned, flags):
    assert "expected one thing to write" in eggs("export", pruned, *flags).error


def test_errors_are_one_line(eggs, pruned, tmp_path):
    assert "is dense already" in eggs("export", pruned, "--format", "dense", "-o", tmp_path / "x").error
    error = eggs("export", pruned, "--format", "packed", "-o", tmp_path / "x", "--pattern", "0.5").error
    assert "sparsity 0.5 is unstructured" in error
    assert "no such folder" in eggs("export", tmp_path / "none", "--format", "packed", "-o", tmp_path / "x").error
    assert not (tmp_path / "x").exists()
