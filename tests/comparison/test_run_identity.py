"""What the identity of a run depends on, and which records are those of finished runs."""

import json
import os

import pytest

from eggs_ptp.comparison import run_identity as run_identity_module
from eggs_ptp.comparison.run_identity import read_finished_run, run_identity
from eggs_ptp.core.records import write_record
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

OWN_SCORE = "def own_score(weight):\n    return weight.abs()\n"


@pytest.fixture
def run(tmp_path):
    """The arguments of `run_identity`, with the files of the model and the texts in place."""
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


def test_the_location_of_the_model_does_not_matter(run, tmp_path):
    identity = run_identity(**run)
    assert identity == run_identity(**run)
    moved = run["folder"].rename(tmp_path / "moved")
    assert identity == run_identity(**{**run, "model": str(moved), "folder": moved})


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
def test_another_recipe_evaluation_or_model_is_another_run(run, change):
    assert run_identity(**run) != run_identity(**{**run, **change})


@pytest.mark.parametrize("file", ["model/model.safetensors", "model/merges.txt", "calibration.txt", "evaluation.txt"])
def test_a_changed_file_makes_another_run(run, tmp_path, file):
    before = run_identity(**run)
    stamp = (tmp_path / file).stat().st_mtime_ns
    os.utime(tmp_path / file, ns=(stamp, stamp + 1))
    touched = run_identity(**run)
    (tmp_path / file).write_text("longer than before")
    os.utime(tmp_path / file, ns=(stamp, stamp))
    assert len({before, touched, run_identity(**run)}) == 3


def test_another_version_of_this_package_makes_another_run(run, monkeypatch):
    before = run_identity(**run)
    monkeypatch.setattr(run_identity_module, "version", lambda package: f"another {package}")
    assert run_identity(**run) != before


def test_changed_code_of_a_user_defined_step_makes_another_run(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scores_for_a_record.py").write_text(OWN_SCORE)
    steps = {"score": {"name": "scores_for_a_record:own_score"}}
    recipe = Recipe(method="wanda", targets=[{"match": "*", "method": "wanda", "steps": steps}])
    before = run_identity(**{**run, "recipe": recipe})
    (tmp_path / "scores_for_a_record.py").write_text(OWN_SCORE.replace("abs", "square"))
    assert run_identity(**{**run, "recipe": recipe}) != before


def test_only_complete_records_are_those_of_finished_runs(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    assert read_finished_run(path) is None
    write_record(path, {"perplexity": 2.5})
    assert read_finished_run(path) == {"perplexity": 2.5}
    for broken in (path.read_text()[:-5], "", "[]", "3", json.dumps({"seed": 0}), "\xff"):
        path.write_bytes(broken.encode("latin-1"))
        assert read_finished_run(path) is None
