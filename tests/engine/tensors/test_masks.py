"""Masks in and out."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp import EggsError, prune
from eggs_ptp.api import export_masks
from eggs_ptp.engine.tensors.masks import MaskFile, write_masks
from eggs_ptp.errors import CheckpointError

MASK = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.5


def test_a_round_trip_takes_one_bit_a_weight(tmp_path):
    write_masks({"a": MASK}, tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors")["a"].shape == (6, 3)
    assert torch.equal(MaskFile(tmp_path / "m.safetensors").read("a", 6, 20), MASK)


@pytest.mark.parametrize(
    "array",
    [
        MASK.numpy(),
        MASK.numpy().astype(np.float32),
        np.packbits(MASK.numpy(), axis=1),
        np.packbits(MASK.numpy().reshape(-1)),
    ],
    ids=["bool", "float", "packed rows", "packed flat"],
)
@pytest.mark.parametrize("key", ["a", "a.weight", "a.mask", "a.weight.mask"])
def test_every_form_is_read(tmp_path, array, key):
    np.savez(tmp_path / "m.npz", **{key: array})
    assert torch.equal(MaskFile(tmp_path / "m.npz").read("a", 6, 20), MASK)


def test_what_is_no_mask_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.full((6, 20), 2), b=MASK.numpy()[:5], c=np.array([object()], dtype=object))
    masks = MaskFile(tmp_path / "m.npz")
    with pytest.raises(CheckpointError, match="c has object"):  # pickled, so not even looked at
        masks.read("c", 6, 20)
    for name in ("a", "b"):
        with pytest.raises(CheckpointError, match=rf"{name} has .* expected 0 and 1 of shape \(6, 20\)"):
            masks.read(name, 6, 20)
    with pytest.raises(CheckpointError, match="no entry for d"):
        masks.read("d", 6, 20)
    for path, message in (("x.npz", "no such file"), ("m.txt", "expected .safetensors or .npz")):
        (tmp_path / "m.txt").write_text("")
        with pytest.raises(CheckpointError, match=message):
            MaskFile(tmp_path / path)


@pytest.fixture
def exported(tiny, text_file, tmp_path):
    settings = {"calibration": text_file, "nsamples": 4, "seqlen": 32}
    prune(str(tiny()), tmp_path / "one", method="ria_cp", permutation="gather", **settings)
    assert export_masks(tmp_path / "one", tmp_path / "masks.safetensors") == 14
    return tmp_path / "masks.safetensors"


def test_given_masks_reproduce_the_run_they_came_from(tiny, tmp_path, exported):
    """`ria_cp` permutes, so its masks are not 2:4 in the original order: they are given as 50 % of the weights."""
    record = prune(str(tiny()), tmp_path / "two", method="magnitude", mask=str(exported), pattern="0.5")
    assert record.calibration is None
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_masks_of_a_folded_folder_are_in_its_own_order(tiny, text_file, tmp_path):
    """And a run that is given masks permutes nothing, so it needs no fold."""
    settings = {"calibration": text_file, "nsamples": 4, "seqlen": 32}
    prune(str(tiny()), tmp_path / "one", method="ria_cp", **settings)
    export_masks(tmp_path / "one", tmp_path / "masks.safetensors")
    record = prune(str(tmp_path / "one"), tmp_path / "two", method="ria_cp", mask=str(tmp_path / "masks.safetensors"))
    assert (record.permutations, record.calibration) == (None, None)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "two" / "eggs").exists()


def test_a_given_mask_that_keeps_more_than_the_pattern_is_refused(tiny, tmp_path, exported):
    with pytest.raises(EggsError, match=r"q_proj: \d+ groups of the given mask keep more than 2:4"):
        prune(str(tiny()), tmp_path / "two", method="magnitude", mask=str(exported), pattern="2:4")
    assert not (tmp_path / "two").exists()


def test_only_the_steps_that_are_left_ask_for_statistics(tiny, tmp_path, text_file):
    masks = {f"model.layers.{block}.self_attn.q_proj": torch.eye(32, dtype=torch.bool) for block in range(2)}
    save_file(masks, tmp_path / "m.safetensors")
    settings = {"mask": str(tmp_path / "m.safetensors"), "pattern": "0.5", "include": ("*.q_proj",)}
    record = prune(str(tiny()), tmp_path / "two", method="wanda", **settings)
    assert record.calibration is None
    assert [matrix["density"] for matrix in record.matrices] == [1 / 32, 1 / 32]
    assert {matrix["mask"] for matrix in record.matrices} == {str(tmp_path / "m.safetensors")}
    card = (tmp_path / "two" / "README.md").read_text()
    assert "wanda" not in card
    assert "masks of `m.safetensors`" in card


def test_a_given_mask_that_keeps_more_than_the_ratio_is_refused(tiny, tmp_path):
    save_file({"model.layers.0.self_attn.q_proj": torch.ones(32, 32, dtype=torch.bool)}, tmp_path / "m.safetensors")
    settings = {"mask": str(tmp_path / "m.safetensors"), "include": ("*.0.*.q_proj",)}
    with pytest.raises(EggsError, match=r"q_proj: the given mask keeps 1\.0000 of the weights, more than 0\.5 allows"):
        prune(str(tiny()), tmp_path / "two", method="magnitude", pattern="0.5", **settings)
