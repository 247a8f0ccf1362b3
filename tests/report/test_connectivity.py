import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from synthetic_records import LINEARS, pruned_run

from eggs_ptp.errors import ModelError
from eggs_ptp.report.connectivity import BINS, CORNER_COLUMNS, CORNER_ROWS, choose_matrices, read_connectivity
from eggs_ptp.report.run_folder import read_runs


def read_run(folder):
    return read_runs([folder])[0][0]


def test_shares_count_every_input_by_the_share_of_outputs_that_it_is_connected_to(tmp_path):
    folder = pruned_run(tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][:, 5] = 0  # a dead input
    save_file(tensors, path, {"format": "pt"})
    connectivity = read_connectivity(read_run(folder))
    expected = {linear: np.zeros(BINS, dtype=int) for linear in LINEARS}
    for name, weight in tensors.items():
        linear = name.removesuffix(".weight").split(".", 3)[3]
        for column in weight.T:
            share = np.count_nonzero(column.float().numpy()) / len(column)
            expected[linear][min(BINS - 1, int(share * BINS + 1e-9))] += 1
    assert {linear: list(counts) for linear, counts in connectivity.shares.items()} == {
        linear: list(counts) for linear, counts in expected.items()
    }
    dead = sum(int((weight == 0).all(0).sum()) for weight in tensors.values())
    assert dead > 0
    assert (connectivity.dead, connectivity.matrices_read, connectivity.inputs) == (dead, 14, 2 * (6 * 16 + 40))


def test_a_corner_is_the_mask_of_the_first_rows_and_columns(tmp_path):
    folder = pruned_run(tmp_path / "a", width=8)
    name = "model.layers.1.mlp.down_proj"
    corner = read_connectivity(read_run(folder), [name]).corners[name]
    weight = load_file(folder / "model.safetensors")[f"{name}.weight"]
    assert corner.mask.shape == (CORNER_ROWS, CORNER_COLUMNS)
    assert (corner.mask == (weight[:CORNER_ROWS, :CORNER_COLUMNS] != 0).numpy()).all()
    assert (corner.mask.reshape(CORNER_ROWS, -1, 4).sum(-1) == 2).all()
    assert str(corner.pattern) == "2:4"


def test_of_large_runs_evenly_spaced_blocks_are_read_and_requested_matrices_in_any_case(tmp_path):
    run = read_run(pruned_run(tmp_path / "a", blocks=9))
    name, block = "model.layers.1.mlp.up_proj", sum(rows * columns for rows, columns in LINEARS.values())
    connectivity = read_connectivity(run, [name], max_weights=3 * block + 1)
    assert connectivity.matrices_read == 3 * len(LINEARS)
    assert list(connectivity.corners) == [name]
    assert read_connectivity(run, max_weights=1).matrices_read == len(LINEARS)  # one block at least
    assert read_connectivity(run).matrices_read == 9 * len(LINEARS)


def test_a_folder_without_weights_has_no_masks_and_one_with_other_shapes_is_refused(tmp_path):
    folder = pruned_run(tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj.weight: expected shape \(16, 16\) as recorded, got \(40, 16\)"):
        read_connectivity(read_run(folder))
    path.unlink()
    assert read_connectivity(read_run(folder)) is None


def test_masks_are_drawn_only_where_they_are_requested(tmp_path):
    run = read_run(pruned_run(tmp_path / "a"))
    assert choose_matrices([run]) == []
    assert choose_matrices([run], ["*.0.mlp.*_proj"]) == [
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"--matrix \*\.bias: no pruned matrix"):
        choose_matrices([run], ["*.bias"])
