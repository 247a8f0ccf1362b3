import json

import pytest

from eggs_ptp.cli import diagnosis_tables as tables


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory, text_file):
    from eggs_ptp import api

    folder = tmp_path_factory.mktemp("pruned") / "out"
    api.prune(str(tiny()), folder, method="eggs_paper", calibration=str(text_file), nsamples=4, seqlen=32)
    return folder


def test_a_table_its_notes_and_a_summary(eggs, pruned):
    ran = eggs("diagnose", pruned)
    assert (ran.code, ran.err) == (0, "")
    words = " ".join(ran.out.split())
    assert "5 ok" in words
    assert "out: 14 matrices, 0.5000 of 18432 weights non-zero dead: 0 of " in words
    assert "degree guaranteed by Lemma 1: holds in 14 of 14 matrices output error: mean 0." in words
    assert [f"\n{name}: " in ran.out for name, _ in tables.MATRIX_NOTES] == [True] * 6
    assert "sigma2" not in ran.out
    assert "retained" not in ran.out


def test_of_all_blocks_the_worst_is_shown_or_every_matrix(eggs, pruned):
    matrices = eggs("diagnose", pruned, "--json").json["matrices"]
    rows = [line.split() for line in eggs("diagnose", pruned).out.splitlines() if "down_proj" in line]
    both = [matrix for matrix in matrices if matrix["name"].endswith("down_proj")]
    degrees = [matrix["input_degrees"] for matrix in both]
    assert rows[0][:4] == [
        "mlp.down_proj",
        str(sum(matrix["dead_inputs"] for matrix in both)),
        f"{min(degree['min'] for degree in degrees):.0f}",
        f"{min(degree['p1'] for degree in degrees):.0f}",
    ]
    assert rows[0][-1] == f"{max(matrix['output_error'] for matrix in both):.4f}"
    full = [line.split() for line in eggs("diagnose", pruned, "--full").out.splitlines() if "down_proj" in line]
    assert [row[0] for row in full[:2]] == ["0.mlp.down_proj", "1.mlp.down_proj"]
    assert [row[-1] for row in full[:2]] == [f"{matrix['output_error']:.4f}" for matrix in both]


def test_spectra_and_retained_shares(eggs, pruned, tiny):
    ran = eggs("diagnose", pruned, "--spectra", "--against", tiny())
    assert (ran.code, ran.err) == (0, "")
    notes = (*tables.SPECTRUM_NOTES, *tables.AGAINST_NOTES)
    assert [f"\n{name}: " in ran.out for name, _ in notes] == [True] * 7
    last = ran.out.splitlines()[-3:]
    assert last[2].startswith("peak memory ")
    assert last[0].startswith("retained: 0.")
    assert last[1].startswith("highest sigma2: 0.")


def test_as_json(eggs, pruned, tiny):
    ran = eggs("diagnose", pruned, "--spectra", "--against", tiny(), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["against"] == str(tiny())
    assert len(ran.json["matrices"]) == ran.json["whole"]["matrices"] == 14
    assert set(ran.json["matrices"][0]["spectrum"]) == {
        "sigma2", "random_edge", "pattern_edge", "ramanujan", "cheeger", "tanner_outputs", "tanner_inputs"
    }  # fmt: skip
    assert ran.json["matrices"][0]["density"] == 0.5
    assert 0.5 < ran.json["whole"]["retained"]["magnitude"] < ran.json["whole"]["retained"]["energy"] < 1


def test_a_guaranteed_degree_that_the_weights_violate(eggs, pruned, tmp_path):
    import shutil

    folder = shutil.copytree(pruned, tmp_path / "copy")
    least = int(eggs("diagnose", folder, "--json").json["matrices"][6]["input_degrees"]["min"])
    record = json.loads((folder / "eggs.json").read_text())
    record["matrices"][6].update(B=least + 1, diagonal_rows=least + 1)  # blocks of one row, so that all fit
    (folder / "eggs.json").write_text(json.dumps(record))
    words = " ".join(eggs("diagnose", folder).out.split())
    assert f"{least + 1} VIOLATED" in words
    assert "holds in 13 of 14 matrices; violated in model.layers.0.mlp.down_proj" in words


def test_a_dense_folder_without_a_record(eggs, tiny):
    ran = eggs("diagnose", tiny(), "--spectra")
    assert ran.code == 0
    assert "degree guaranteed by Lemma 1: no B is recorded" in ran.out
    assert "1.0000 of " in ran.out


def test_bad_input_is_one_line(eggs, pruned, tmp_path):
    assert "no such folder" in eggs("diagnose", tmp_path / "none").error
    assert "no such folder" in eggs("diagnose", pruned, "--against", tmp_path / "none").error
    assert "config.json" in eggs("diagnose", tmp_path).error
    (tmp_path / "file").write_text("x")
    assert "file" in eggs("diagnose", tmp_path / "file").error


def test_measurements_on_text(eggs, pruned, tiny, text_file):
    ran = eggs(
        "diagnose", pruned, "--against", tiny(), "--calibration", text_file, "--nsamples", "2", "--seqlen", "24",
        "--spectra", "--reachability", "--bounds", "--flow",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    notes = (tables.CALIBRATION_NOTES, tables.BOUND_NOTES, tables.REACHABILITY_NOTES)
    columns = [name for table_notes in (*notes, tables.FLOW_NOTES) for name, _ in table_notes]
    assert [name for name in columns if f"\n{name}: " not in ran.out] == []
    words = " ".join(ran.out.split())
    assert "on 2 windows of 24 tokens: mean error 0." in words
    assert "mean error of the best masks: kept weights unchanged, at least 0." in words
    assert "gradient norm before the first block / after the last: dense" in words


def test_text_as_json(eggs, pruned, tiny, text_file):
    ran = eggs(
        "diagnose",
        pruned,
        "--against",
        tiny(),
        "--calibration",
        text_file,
        "--nsamples",
        "2",
        "--seqlen",
        "24",
        "--json",
    )
    assert ran.json["calibration"]["nsamples"] == 2
    assert 0 < ran.json["whole"]["mean_calibrated"]["output_error"] < 1
    assert {key.split(".")[0] for key in ran.json["meaning"]} >= {"whole", "matrices", "calibration"}
    assert ran.json["blocks"] == []


def test_text_without_a_dense_model_is_refused(eggs, pruned, tiny, text_file):
    assert "pass it as --against" in eggs("diagnose", pruned, "--calibration", text_file).error
    assert "both --against and --calibration" in eggs("diagnose", pruned, "--against", tiny(), "--bounds").error
    assert "no file" in eggs("diagnose", pruned, "--against", tiny(), "--calibration", "nothing.txt").error


def test_reach_is_the_old_name_of_reachability(eggs, pruned):
    ran = eggs("diagnose", pruned, "--reach", "--json")
    assert ran.err == "eggs: warning: --reach is now --reachability\n"
    assert len(ran.json["blocks"]) == 2
