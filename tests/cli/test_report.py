import shutil
from types import SimpleNamespace

import pytest
from synthetic_records import evaluation, pruned_run, write_record

from eggs_ptp import api
from eggs_ptp.cli import report_texts
from eggs_ptp.cli.report import print_result
from eggs_ptp.report.record_files import Skipped
from eggs_ptp.report.report import Report


@pytest.fixture
def runs(tmp_path):
    folders = [pruned_run(tmp_path / "a", blocks=1), pruned_run(tmp_path / "b", blocks=1, method="ria")]
    for folder, value in zip(folders, (28.0, 31.0), strict=True):
        write_record(tmp_path / f"{folder.name}.evaluation.json", evaluation(str(folder), "org/base", value))
    return folders


def test_a_page_markdown_and_plots(eggs, runs, tmp_path):
    page, card, plots = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "plots"
    ran = eggs("report", runs[1], "-o", page, "--markdown", card, "--plots", plots, "--matrix", "*.0.mlp.up_proj")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{page}: 1 run, ")
    assert " kB, in " in ran.out
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "Pattern of model.layers.0.mlp.up_proj" in page.read_text()
    assert "| b | 31.00 ± 0.62 | 1.550 |" in card.read_text()
    stems = {path.stem for path in plots.iterdir()}
    assert {"m0-heat-0", "m0-pattern-0"} <= stems
    assert {path.suffix for path in plots.iterdir()} == {".svg", ".png"}
    assert len(list(plots.iterdir())) == 2 * len(stems)


def test_as_json_with_skipped_files(eggs, runs, tmp_path):
    page = tmp_path / "r.html"
    broken = write_record(tmp_path / "records" / "broken.json", '{"model": ')
    other_model = pruned_run(tmp_path / "c", blocks=1, model="org/other")
    ran = eggs("report", runs[0], other_model, "-o", page, "--records", broken.parent, "--json", "--all-blocks")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["bytes"] == page.stat().st_size
    assert [(run["label"], run["model"]) for run in ran.json["runs"]] == [("a", "org/base"), ("c", "org/other")]
    assert [skipped["path"] for skipped in ran.json["skipped"]] == [str(broken)]
    assert ran.json["plots"] == []


def test_skipped_files_are_named_and_different_models_are_not_compared(capsys, tmp_path):
    groups = [(SimpleNamespace(model=model, runs=[]), ()) for model in ("org/base", "org/other")]
    skipped = [Skipped(tmp_path / "broken.json", "truncated")]
    print_result(Report(groups, skipped), tmp_path / "r.html", 10**6, 2.0)
    output = capsys.readouterr()
    skipped_line, compared_line = output.err.splitlines()
    assert skipped_line == f"eggs: skipped {tmp_path / 'broken.json'}: truncated"
    assert compared_line == "eggs: runs of different models are not compared: org/base, org/other"
    assert output.out == f"{tmp_path / 'r.html'}: 0 runs, 1.0 MB, in 2 seconds\n"


def test_refusals(eggs, runs, tmp_path):
    nowhere = tmp_path / "no" / "r.html"
    assert "there is no such folder to write to" in eggs("report", *runs, "-o", nowhere).error
    assert "no pruned matrix has this name" in eggs("report", *runs, "-o", tmp_path / "r.html", "--matrix", "x").error
    (runs[0] / "eggs.json").write_text("{")
    assert "no run is left" in eggs("report", runs[0], "-o", tmp_path / "r.html").error
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "folder").mkdir()
    assert "cannot be written" in eggs("report", runs[1], "-o", tmp_path / "folder").error
    assert not list(tmp_path.glob(".*partial"))


def test_a_page_does_not_read_other_files(eggs, runs, tmp_path):
    assert eggs("report", runs[0], "-o", tmp_path / "r.html").code == 0
    shutil.rmtree(runs[0])
    text = (tmp_path / "r.html").read_text()
    assert str(tmp_path) not in text.replace(str(runs[0]), "")  # the folder is named once, nothing is read from it


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "run"
    api.prune(str(tiny()), folder, method="magnitude")
    return folder


def texts_of(eggs, folder, tmp_path, *flags):
    assert eggs("report", folder, "-o", tmp_path / "r.html", "--markdown", tmp_path / "r.md", *flags).code == 0
    _, found, section = (tmp_path / "r.md").read_text().partition("### Generated text")
    return section.partition("\n### ")[0] if found else None


def test_without_a_record_both_models_write_a_text(eggs, pruned, tmp_path):
    section = texts_of(eggs, pruned, tmp_path)
    assert [line for line in section.splitlines() if line.endswith(":")] == ["dense:", "run:"]
    assert section.count("> **The most important thing about**") == 2
    assert texts_of(eggs, pruned, tmp_path, "--no-texts") is None


def test_a_recorded_text_is_shown_with_that_of_the_dense_model(eggs, pruned, tiny, tmp_path):
    ran = eggs("generate", pruned, "--against", tiny(), "--prompt", "Once upon", "--tokens", "4", "--json")
    record = tmp_path / "text.json"
    record.write_text(ran.out)
    section = texts_of(eggs, pruned, tmp_path, "--records", record)
    assert [line for line in section.splitlines() if line.endswith(":")] == ["dense:", "run:"]
    assert section.count("> **Once upon**") == 2


def test_a_model_too_large_to_write_here_writes_nothing(eggs, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(report_texts, "_MOST_PARAMETERS", 100)
    monkeypatch.setattr(api, "load", lambda *_: pytest.fail("a model was loaded"))
    assert texts_of(eggs, pruned, tmp_path) is None
