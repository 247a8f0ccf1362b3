"""What makes a run another run."""

import json
import os
import shutil

import pytest

from eggs_ptp.comparison import record
from eggs_ptp.comparison.record import identity, read_record, write_record
from eggs_ptp.errors import CheckpointError
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

MINE = "def mine(weight):\n    return weight.abs()\n"


@pytest.fixture
def given(tmp_path):
    """Files of a model and of texts, and what `identity` is told of them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "merges.txt"):
        (folder / name).write_text("{}")
    for name in ("calibration.txt", "evaluation.txt"):
        (tmp_path / name).write_text("text")
    recipe = Recipe(method="wanda", calibration=CalibrationSpec(text=str(tmp_path / "calibration.txt")))
    return {
        "recipe": recipe,
        "model": str(folder),
        "folder": folder,
        "evaluation": {"text": str(tmp_path / "evaluation.txt"), "seqlen": None},
    }


def test_the_same_run_has_the_same_name_wherever_the_model_stands(given, tmp_path):
    name = identity(**given)
    assert name == identity(**given)
    moved = given["folder"].rename(tmp_path / "moved")
    assert name == identity(**{**given, "model": str(moved), "folder": moved})


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": Recipe(method="ria")},
        {"recipe": Recipe(method="wanda", seed=1)},
        {"recipe": None},
        {"evaluation": {"text": "other.txt", "seqlen": None}},
        {"evaluation": {"text": None, "seqlen": 64}},
        {"model": "owner/name"},
    ],
)
def test_another_recipe_evaluation_or_model_is_another_run(given, change):
    assert identity(**given) != identity(**{**given, **change})


@pytest.mark.parametrize("file", ["model/model.safetensors", "model/merges.txt", "calibration.txt", "evaluation.txt"])
def test_a_file_that_changed_makes_another_run(given, tmp_path, file):
    before = identity(**given)
    stamp = (tmp_path / file).stat().st_mtime_ns
    os.utime(tmp_path / file, ns=(stamp, stamp + 1))
    touched = identity(**given)
    (tmp_path / file).write_text("longer than before")
    os.utime(tmp_path / file, ns=(stamp, stamp))
    assert len({before, touched, identity(**given)}) == 3


def test_another_version_of_this_package_makes_another_run(given, monkeypatch):
    before = identity(**given)
    monkeypatch.setattr(record, "version", lambda package: f"another {package}")
    assert identity(**given) != before


def test_another_code_of_ones_own_step_makes_another_run(given, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scores_for_a_record.py").write_text(MINE)
    steps = {"score": {"name": "scores_for_a_record:mine"}}
    recipe = Recipe(method="wanda", targets=[{"match": "*", "method": "wanda", "steps": steps}])
    before = identity(**{**given, "recipe": recipe})
    (tmp_path / "scores_for_a_record.py").write_text(MINE.replace("abs", "square"))
    assert identity(**{**given, "recipe": recipe}) != before


def test_a_record_is_read_back_and_what_is_none_is_not(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    assert read_record(path) is None
    write_record(path, {"perplexity": 2.5})
    assert read_record(path) == {"perplexity": 2.5}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    for broken in (path.read_text()[:-5], "", "[]", "3", json.dumps({"seed": 0}), "\xff"):
        path.write_bytes(broken.encode("latin-1"))
        assert read_record(path) is None


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/a\.json: cannot be written \(.*\)$"):
        write_record(tmp_path / "file" / "a.json", {})
    shutil.rmtree(tmp_path)
