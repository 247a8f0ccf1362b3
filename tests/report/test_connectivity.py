import numpy as np
import pytest
from pruned import LINEARS, pruned_run
from safetensors.torch import load_file, save_file

from eggs_ptp.errors import ModelError
from eggs_ptp.report.connectivity import BINS, COLUMNS, ROWS, choose, connectivity
from eggs_ptp.report.run import read_runs


def only(folder):
    return read_runs([folder])[0][0]


def test_shares_count_every_input_by_the_part_of_the_outputs_it_reaches(tmp_path):
    folder = pruned_run(tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][:, 5] = 0  # a dead input
    save_file(tensors, path, {"format": "pt"})
    found = connectivity(only(folder))
    expected = {linear: np.zeros(BINS, dtype=int) for linear in LINEARS}
    for name, weight in tensors.items():
        linear = name.removesuffix(".weight").split(".", 3)[3]
        for column in weight.T:
            share = np.count_nonzero(column.float().numpy()) / len(column)
            expected[linear][min(BINS - 1, int(share * BINS + 1e-9))] += 1
    assert {linear: list(counts) for linear, counts in found.shares.items()} == {
        linear: list(counts) for linear, counts in expected.items()
    }
    dead = sum(int((weight == 0).all(0).sum()) for weight in tensors.values())
    assert dead > 0
    assert (found.dead, found.read, found.inputs) == (dead, 14, 2 * (6 * 16 + 40))


def test_a_corner_is_the_mask_of_the_first_rows_and_columns(tmp_path):
    folder = pruned_run(tmp_path / "a", width=8)
    name = "model.layers.1.mlp.down_proj"
    corner = connectivity(only(folder), [name]).corners[name]
    weight = load_file(folder / "model.safetensors")[f"{name}.weight"]
    assert corner.mask.shape == (ROWS, COLUMNS)
    assert (corner.mask == (weight[:ROWS, :COLUMNS] != 0).numpy()).all()
    assert (corner.mask.reshape(ROWS, -1, 4).sum(-1) == 2).all()
    assert str(corner.pattern) == "2:4"


def test_of_large_runs_evenly_spaced_blocks_are_read_and_chosen_matrices_in_any_case(tmp_path):
    run = only(pruned_run(tmp_path / "a", blocks=9))
    name, block = "model.layers.1.mlp.up_proj", sum(rows * columns for rows, columns in LINEARS.values())
    found = connectivity(run, [name], most=3 * block + 1)
    assert found.read == 3 * len(LINEARS)
    assert list(found.corners) == [name]
    assert connectivity(run, most=1).read == len(LINEARS)  # one block at least
    assert connectivity(run).read == 9 * len(LINEARS)


def test_a_folder_without_weights_has_no_masks_and_one_with_others_is_refused(tmp_path):
    folder = pruned_run(tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj.weight is \(40, 16\), expected \(16, 16\)"):
        connectivity(only(folder))
    path.unlink()
    assert connectivity(only(folder)) is None


def test_the_extremes_of_the_output_error_are_looked_at_unless_others_are_named(tmp_path):
    run = only(pruned_run(tmp_path / "a"))
    assert choose([run]) == ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
    assert choose([run], ["*.0.mlp.*_proj"]) == [
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"--matrix \*\.bias: no pruned matrix"):
        choose([run], ["*.bias"])
    for matrix in run.manifest["matrices"]:
        matrix["output_error"] = None
    assert choose([run]) == ["model.layers.0.self_attn.q_proj"]
