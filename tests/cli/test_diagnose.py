import json

import pytest

from eggs_ptp.cli import diagnosis_text


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory, text_file):
    from eggs_ptp import api

    folder = tmp_path_factory.mktemp("made") / "out"
    api.prune(str(tiny()), folder, method="eggs_paper", calibration=str(text_file), nsamples=4, seqlen=32)
    return folder


def test_a_table_its_meaning_and_the_model_as_a_whole(eggs, made):
    ran = eggs("diagnose", made)
    assert (ran.code, ran.err) == (0, "")
    words = " ".join(ran.out.split())
    assert "5 ok" in words
    assert "out: 14 matrices, 0.5000 of 18432 weights non-zero dead: 0 of " in words
    assert "Lemma 1's floor: 14 of 14 held output error: mean 0." in words
    assert [f"\n{name}: " in ran.out for name, _ in diagnosis_text._NOTES] == [True] * 6
    assert "sigma2" not in ran.out
    assert "retained" not in ran.out


def test_spectra_and_what_was_retained(eggs, made, tiny):
    ran = eggs("diagnose", made, "--spectra", "--against", tiny())
    assert (ran.code, ran.err) == (0, "")
    notes = (*diagnosis_text._NOTES_SPECTRA, *diagnosis_text._NOTES_AGAINST)
    assert [f"\n{name}: " in ran.out for name, _ in notes] == [True] * 7
    last = ran.out.splitlines()[-2:]
    assert last[0].startswith("retained: 0.")
    assert last[1].startswith("highest sigma2: 0.")


def test_as_json(eggs, made, tiny):
    ran = eggs("diagnose", made, "--spectra", "--against", tiny(), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["against"] == str(tiny())
    assert len(ran.json["matrices"]) == ran.json["whole"]["matrices"] == 14
    assert set(ran.json["matrices"][0]["spectrum"]) == {
        "sigma2", "random_edge", "pattern_edge", "ramanujan", "cheeger", "tanner_outputs", "tanner_inputs"
    }  # fmt: skip
    assert ran.json["matrices"][0]["density"] == 0.5
    assert 0.5 < ran.json["whole"]["retained"]["magnitude"] < ran.json["whole"]["retained"]["energy"] < 1


def test_a_floor_that_the_weights_do_not_have(eggs, made, tmp_path):
    import shutil

    folder = shutil.copytree(made, tmp_path / "copy")
    least = int(eggs("diagnose", folder, "--json").json["matrices"][6]["input_degrees"]["min"])
    record = json.loads((folder / "eggs.json").read_text())
    record["matrices"][6].update(B=least + 1, diagonal_rows=least + 1)  # blocks of one row: all of them fit
    (folder / "eggs.json").write_text(json.dumps(record))
    words = " ".join(eggs("diagnose", folder).out.split())
    assert f"{least + 1} BROKEN" in words
    assert "Lemma 1's floor: 13 of 14 held; broken: model.layers.0.mlp.down_proj" in words


def test_a_dense_folder_without_a_record(eggs, tiny):
    ran = eggs("diagnose", tiny(), "--spectra")
    assert ran.code == 0
    assert "Lemma 1's floor: no B is recorded" in ran.out
    assert "1.0000 of " in ran.out


def test_bad_input_is_one_line(eggs, made, tmp_path):
    assert "no such folder" in eggs("diagnose", tmp_path / "none").error
    assert "no such folder" in eggs("diagnose", made, "--against", tmp_path / "none").error
    assert "config.json" in eggs("diagnose", tmp_path).error
    (tmp_path / "file").write_text("x")
    assert "file" in eggs("diagnose", tmp_path / "file").error


def test_what_text_shows(eggs, made, tiny, text_file):
    ran = eggs(
        "diagnose", made, "--against", tiny(), "--calibration", text_file, "--nsamples", "2", "--seqlen", "24",
        "--spectra", "--reach", "--bounds", "--flow",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    notes = (diagnosis_text._NOTES_CALIBRATED, diagnosis_text._NOTES_BOUNDS, diagnosis_text._NOTES_REACH)
    every = [name for each in (*notes, diagnosis_text._NOTES_FLOW) for name, _ in each]
    assert [name for name in every if f"\n{name}: " not in ran.out] == []
    words = " ".join(ran.out.split())
    assert "on 2 windows of 24 tokens: mean error 0." in words
    assert "kept weights as they are, no masks lose less than 0." in words
    assert "gradient, before the first block / behind the last: dense" in words


def test_text_as_json(eggs, made, tiny, text_file):
    ran = eggs(
        "diagnose", made, "--against", tiny(), "--calibration", text_file, "--nsamples", "2", "--seqlen", "24", "--json"
    )
    assert ran.json["calibration"]["nsamples"] == 2
    assert 0 < ran.json["whole"]["mean_calibrated"]["output_error"] < 1
    assert {key.split(".")[0] for key in ran.json["meaning"]} >= {"whole", "matrices", "calibration"}
    assert ran.json["blocks"] == []


def test_text_without_a_model_to_compare_with_is_refused(eggs, made, tiny, text_file):
    assert "pass it as --against" in eggs("diagnose", made, "--calibration", text_file).error
    assert "both --against and --calibration" in eggs("diagnose", made, "--against", tiny(), "--bounds").error
    assert "no file" in eggs("diagnose", made, "--against", tiny(), "--calibration", "nothing.txt").error
