import shutil

import pytest
from synthetic_records import bench, evaluation, pruned_run, write_record

from eggs_ptp.errors import CheckpointError
from eggs_ptp.report.record_files import Kind, read_record
from eggs_ptp.report.run_folder import attach_to_runs, block_and_linear, group_by_model, read_runs


def test_a_run_has_the_properties_of_its_record(tmp_path):
    (run,), skipped = read_runs([pruned_run(tmp_path / "a")])
    assert skipped == []
    assert (run.label, run.method, run.pattern, run.model) == ("a", "eggs+", "2:4", "org/base")
    assert run.weights == 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 40 * 16)
    assert run.kept == 0.5
    assert run.error == pytest.approx(0.015 + 0.0065)
    assert run.stored == (tmp_path / "a" / "model.safetensors").stat().st_size
    assert not run.packed


def test_labels_are_the_shortest_ends_that_differ_and_a_folder_counts_once(tmp_path):
    folders = [pruned_run(tmp_path / name) for name in ("x/a", "y/a", "y/b")]
    runs, _ = read_runs([*folders, tmp_path / "x" / ".." / "x" / "a"])
    assert [run.label for run in runs] == ["x/a", "y/a", "y/b"]


def test_a_run_with_a_broken_record_is_skipped_by_name(tmp_path):
    good = pruned_run(tmp_path / "good")
    truncated = pruned_run(tmp_path / "truncated")
    missing = tmp_path / "missing"
    manifest = truncated / "eggs.json"
    manifest.write_text(manifest.read_text()[:-200])
    runs, skipped = read_runs([good, truncated, missing])
    assert [run.label for run in runs] == ["good"]
    assert [folder.path for folder in skipped] == [truncated, missing]
    assert "eggs.json" in skipped[0].reason
    with pytest.raises(CheckpointError, match=r"no run is left.*eggs\.json"):
        read_runs([truncated, missing])


def test_runs_of_another_name_revision_or_shape_are_of_another_model(tmp_path):
    source = {"model": "org/base", "revision": "v2", "model_type": "llama"}
    folders = [
        pruned_run(tmp_path / "a"),
        pruned_run(tmp_path / "b", method="ria"),
        pruned_run(tmp_path / "c", model="org/other"),
        pruned_run(tmp_path / "d", source=source),
        pruned_run(tmp_path / "e", width=2),
    ]
    groups = group_by_model(read_runs(folders)[0])
    assert [[run.label for run in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_records_go_to_the_run_that_they_are_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = pruned_run(tmp_path / "a")
    b = pruned_run(tmp_path / "b", method="ria")
    shutil.copytree(a, tmp_path / "a-packed")  # the same run in another form
    compared = {"perplexity": 3.0, "evaluation": {}, "versions": {}, "recipe_sha256": "hash of ria"}
    records = {
        "relative": (evaluation("a", "org/base"), a),
        "packed": (bench(str(tmp_path / "a-packed")), a),
        "moved": (bench("/elsewhere/b"), b),
        "by its recipe": (compared, b),
        "dense": (evaluation("org/base", "org/base"), None),
        "unknown": (bench("/elsewhere/c"), None),
    }
    runs, _ = read_runs([a, b])
    all_records = [read_record(write_record(tmp_path / f"{name}.json", data)) for name, (data, _) in records.items()]
    remaining = attach_to_runs(runs, all_records)
    owners = {record.path.stem: run.folder for run in runs for record in run.all_records}
    assert owners == {name: owner for name, (_, owner) in records.items() if owner}
    assert [record.path.stem for record in remaining] == ["dense", "unknown"]
    assert [record.path.stem for record in runs[0].records_of(Kind.bench)] == ["packed"]


def test_a_record_of_a_folder_of_the_same_name_that_is_another_run_is_not_taken(tmp_path):
    run = pruned_run(tmp_path / "x" / "a")
    same_name = pruned_run(tmp_path / "y" / "a", method="ria")
    runs, _ = read_runs([run])
    record = read_record(write_record(tmp_path / "r.json", bench(str(same_name))))
    assert attach_to_runs(runs, [record]) == [record]


def test_names_of_matrices_are_split_into_block_and_linear():
    assert block_and_linear("model.layers.12.mlp.down_proj") == (12, "mlp.down_proj")
    assert block_and_linear("lm_head") == (0, "lm_head")
