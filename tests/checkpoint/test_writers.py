"""Every file that a verb writes: a disk that is full, or a lost permission, is one line, and what was there stays."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from eggs_ptp.checkpoint.draft import Draft
from eggs_ptp.comparison.record import write_record as compared
from eggs_ptp.core.whole_file import write_whole
from eggs_ptp.engine.masks import write_masks
from eggs_ptp.errors import CheckpointError
from eggs_ptp.evaluation.record import write_record as evaluated

WRITERS = {
    "masks of eggs export": lambda path: write_masks({"a": torch.ones(4, 8) > 0}, path),
    "record of eggs evaluate": lambda path: evaluated(path, {"kind": "evaluation"}),
    "record of eggs compare, bench and report": lambda path: compared(path, {"perplexity": 1.0}),
    "page of eggs report": lambda path: write_whole(path, "<html>"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_file_that_cannot_be_put_in_place_leaves_what_was_there(tmp_path, monkeypatch, writer, number):
    path = tmp_path / "file"
    writer(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(CheckpointError, match=f"{path}: cannot be written .{os.strerror(number)}"):
            writer(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_place_that_is_no_folder_is_one_line(tmp_path, writer):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        writer(tmp_path / "file" / "inside")


def test_whatever_the_system_refuses_in_a_draft_is_one_line_with_the_file(tmp_path):
    def write():
        with Draft(tmp_path / "out") as draft:
            (draft.folder / "missing" / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"config\.json: No such file or directory"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_weight_beyond_its_type_is_named(tiny, text_file, tmp_path, monkeypatch):
    from eggs_ptp import api
    from eggs_ptp.engine import readers
    from eggs_ptp.errors import NumericsError

    finish = readers._finished

    def grown(run, matrix, job, pruned, *rest):
        if matrix.name == "model.layers.1.mlp.down_proj":
            pruned.weight[0, :] *= 1e6 / pruned.weight[0, :].abs().max()
        return finish(run, matrix, job, pruned, *rest)

    monkeypatch.setattr(readers, "_finished", grown)
    with pytest.raises(NumericsError, match=r"^model\.layers\.1\.mlp\.down_proj\.weight: .* beyond 65504, .* float16"):
        api.prune(str(tiny(dtype=torch.float16)), tmp_path / "out", method="magnitude")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"density": float("nan")}, r"matrices\[0\]: density cannot be nan"),
        ({"density": 1e308}, r"matrices\[0\]: density cannot be 1e\+308"),
        ({"density": -1}, r"matrices\[0\]: density cannot be -1"),
        ({"density": "half"}, r"matrices\[0\]: density cannot be str"),
        ({"name": 3}, r"matrices\[0\]: name cannot be int"),
        ({"permuted": None}, r"matrices\[0\]: permuted cannot be NoneType"),
    ],
)
def test_a_record_of_other_types_is_refused(change, reason):
    from eggs_ptp.checkpoint.record import fault_of

    matrix = {"name": "a", "pattern": "2:4", "density": 0.5, "permuted": False, "updated": False}
    record = {"format": 2, "source": {"model": "m"}, "matrices": [matrix]}
    assert fault_of(record) is None
    found = fault_of({**record, "matrices": [{**matrix, **change}]})
    assert found
    assert re.search(reason, found)


def test_orders_and_heads_that_do_not_fit_are_refused():
    from types import SimpleNamespace

    from eggs_ptp.errors import MethodError, ModelError
    from eggs_ptp.models.fold import Fold
    from eggs_ptp.models.heads import Heads
    from eggs_ptp.models.table import FAMILIES

    fold = Fold(FAMILIES["llama"], Heads(2, 1, 2), {"residual": torch.arange(4).flip(0)})
    for call in (fold.apply, fold.undo):
        with pytest.raises(MethodError, match=r"norm\.weight: an order of axis 0 has 4 channels, .* shape \(6,\)"):
            call("model.norm.weight", torch.ones(6))
    for heads in ({"num_attention_heads": 3, "num_key_value_heads": 2}, {"head_dim": -1}, {"num_key_value_heads": -1}):
        with pytest.raises(ModelError, match="no attention can have"):
            Heads.of(SimpleNamespace(**{"hidden_size": 12, **heads}))


def test_a_previous_output_that_cannot_be_moved_back_is_not_cleared_away(tmp_path, monkeypatch):
    """Without an exchange in one step there are two renames; then nothing can be renamed any more."""
    import eggs_ptp.checkpoint.draft as drafts

    output, real, count = tmp_path / "out", Path.rename, []
    output.mkdir()
    (output / "config.json").write_text("previous")
    monkeypatch.setattr(drafts, "exchange", lambda *_: False)

    def rename(self, target):
        count.append(target)
        if len(count) in (2, 3):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(self, target)

    def replace_it():
        with Draft(output, overwrite=True) as draft:
            (draft.folder / "config.json").write_text("new")
            monkeypatch.setattr(Path, "rename", rename)
            draft.publish()

    with pytest.raises(CheckpointError, match="Permission denied"):
        replace_it()
    assert not output.exists()
    monkeypatch.undo()
    with pytest.raises(KeyError), Draft(output, overwrite=True):
        raise KeyError("whatever the next run does")
    assert (output / "config.json").read_text() == "previous"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_renamed_tensor_is_not_exported(tiny, tmp_path):
    """As one damaged byte of a header makes it."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.packed import export

    api.prune(str(tiny()), tmp_path / "out", method="magnitude")
    path = tmp_path / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"model.norm.weight"', b'"model.norm.weighs"'))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weigh[st] is in eggs\.json or in the files, but not in both"
    ):
        export(tmp_path / "out", tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()
