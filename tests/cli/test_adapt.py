"""`eggs adapt` and `eggs export --permutation base`: what they print and refuse, and who points to them."""

import pytest
from lora import write_adapter

TARGETS = ("q_proj", "o_proj", "down_proj")


@pytest.fixture(scope="module")
def pruned(tiny, text_file, tmp_path_factory):
    """`pruned("fold")`: a folder pruned with permutations that are applied so."""
    from eggs_ptp import api

    made = {}

    def folder(permutation):
        if permutation not in made:
            made[permutation] = tmp_path_factory.mktemp(permutation) / "out"
            settings = {"permutation": permutation, "calibration": str(text_file), "nsamples": 4, "seqlen": 32}
            api.prune(str(tiny()), made[permutation], method="ria_cp", **settings)
        return made[permutation]

    return folder


def test_adapt(eggs, pruned, tiny, tmp_path):
    adapter = write_adapter(tmp_path / "lora", tiny(), TARGETS)
    ran = eggs("adapt", adapter, "--to", pruned("fold"), "-o", tmp_path / "out")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"10 of 12 tensors permuted to the channels of {pruned('fold')}",
        f"The adapter was made for {tiny()}",
        f"The folder was pruned from {tiny()}; the two must be the same model",
        f"Written to {tmp_path / 'out'}; load it with peft on {pruned('fold')} only",
    ]
    report = eggs("adapt", adapter, "--to", pruned("fold"), "-o", tmp_path / "out", "--overwrite", "--json").json
    assert (report["permuted"], report["tensors"], report["folded"]) == (10, 12, True)


def test_nothing_to_permute_is_said(eggs, pruned, tiny, tmp_path):
    adapter = write_adapter(tmp_path / "lora", tiny(), TARGETS)
    ran = eggs("adapt", adapter, "--to", pruned("gather"), "-o", tmp_path / "out")
    assert ran.code == 0
    assert f"Nothing to permute: no permutation is folded into {pruned('gather')}" in ran.out
    error = eggs("export", pruned("gather"), "--permutation", "base", "-o", tmp_path / "base").error
    assert f"in the channel order of {tiny()} already; use the folder as it is" in error


def test_export_in_the_channels_of_the_base(eggs, pruned, tiny, tmp_path):
    base = tmp_path / "base"
    ran = eggs("export", pruned("fold"), "--permutation", "base", "-o", base)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"Written to {base}, dense, in the channel order of {tiny()}",
        "14 of 14 matrices are N:M only in permutations that it stores, not as written;",
        "eggs verify and eggs export --format packed read them",
    ]
    assert eggs("verify", base, "--against", tiny()).code == 0
    report = eggs("export", pruned("fold"), "--permutation", "base", "-o", base, "--overwrite", "--json").json
    assert report == {
        "folder": str(pruned("fold")),
        "output": str(base),
        "source": str(tiny()),
        "matrices": 14,
        "permuted": 14,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "packed", "-o", "x"), "writes a dense folder; pack that one"),
        ((), "expected --permutation base -o DIR"),
        (("--masks", "m"), "expected --permutation base -o DIR"),
        (("-o", "x", "--pattern", "2:4"), "expected --permutation base -o DIR"),
        (("-o", "x", "--values", "int8"), "--values quantises while packing"),
    ],
)
def test_one_thing_is_written(eggs, pruned, flags, message):
    assert message in eggs("export", pruned("fold"), "--permutation", "base", *flags).error


def test_prune_ends_with_what_a_fold_changes(eggs, tiny, text_file, tmp_path):
    flags = ("--method", "ria_cp", "--calibration", text_file, "--nsamples", 4, "--seqlen", 32)
    folded = eggs("prune", tiny(), "-o", tmp_path / "fold", *flags).out
    assert "a LoRA adapter of the base model\nneeds eggs adapt" in folded
    assert "eggs export --permutation base" in folded
    gathered = eggs("prune", tiny(), "-o", tmp_path / "gather", *flags, "--permutation", "gather").out
    assert "eggs adapt" not in gathered
