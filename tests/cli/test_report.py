import shutil
from types import SimpleNamespace

import pytest
from pruned import evaluation, keep, pruned_run

from eggs_ptp.cli import report
from eggs_ptp.report.record import Skipped
from eggs_ptp.report.report import Report


@pytest.fixture
def runs(tmp_path):
    folders = [pruned_run(tmp_path / "a", blocks=1), pruned_run(tmp_path / "b", blocks=1, method="ria")]
    for folder, value in zip(folders, (28.0, 31.0), strict=True):
        keep(tmp_path / f"{folder.name}.evaluation.json", evaluation(str(folder), "org/base", value))
    return folders


def test_a_page_markdown_and_pictures(eggs, runs, tmp_path):
    page, card, plots = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "plots"
    ran = eggs("report", runs[1], "-o", page, "--markdown", card, "--plots", plots, "--matrix", "*.0.mlp.up_proj")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{page}: 1 run, 0.")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "Pattern of model.layers.0.mlp.up_proj" in page.read_text()
    assert "| b | 31.00 ± 0.62 | 1.550 |" in card.read_text()
    stems = {path.stem for path in plots.iterdir()}
    assert {"m0-perplexity-0", "m0-heat-0", "m0-degrees", "m0-pattern-0"} <= stems
    assert {path.suffix for path in plots.iterdir()} == {".svg", ".png"}
    assert len(list(plots.iterdir())) == 2 * len(stems)


def test_as_json_and_what_is_left_out(eggs, runs, tmp_path):
    page, broken = tmp_path / "r.html", keep(tmp_path / "given" / "broken.json", '{"model": ')
    other = pruned_run(tmp_path / "c", blocks=1, model="org/other")
    ran = eggs("report", runs[0], other, "-o", page, "--records", broken.parent, "--json", "--all-blocks")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["bytes"] == page.stat().st_size
    assert [(run["label"], run["model"]) for run in ran.json["runs"]] == [("a", "org/base"), ("c", "org/other")]
    assert [each["path"] for each in ran.json["skipped"]] == [str(broken)]
    assert ran.json["plots"] == []


def test_what_is_left_out_is_named_and_different_models_are_not_compared(capsys, tmp_path):
    groups = [(SimpleNamespace(model=model, runs=[]), ()) for model in ("org/base", "org/other")]
    report._print(Report(groups, [Skipped(tmp_path / "broken.json", "cut short")]), tmp_path / "r.html", 10**6, 2.0)
    said = capsys.readouterr()
    left, compared = said.err.splitlines()
    assert left == f"eggs: left out {tmp_path / 'broken.json'}: cut short"
    assert compared == "eggs: runs of different models are not compared: org/base, org/other"
    assert said.out == f"{tmp_path / 'r.html'}: 0 runs, 1.00 MB, in 2.00 s\n"


def test_refusals(eggs, runs, tmp_path):
    nowhere = tmp_path / "no" / "r.html"
    assert "there is no such folder to write to" in eggs("report", *runs, "-o", nowhere).error
    assert "no pruned matrix is so named" in eggs("report", *runs, "-o", tmp_path / "r.html", "--matrix", "x").error
    (runs[0] / "eggs.json").write_text("{")
    assert "no run is left" in eggs("report", runs[0], "-o", tmp_path / "r.html").error
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "folder").mkdir()
    assert "cannot be written" in eggs("report", runs[1], "-o", tmp_path / "folder").error
    assert not list(tmp_path.glob(".*partial"))


def test_a_moved_page_is_whole(eggs, runs, tmp_path):
    assert eggs("report", runs[0], "-o", tmp_path / "r.html").code == 0
    shutil.rmtree(runs[0])
    text = (tmp_path / "r.html").read_text()
    assert str(tmp_path) not in text.replace(str(runs[0]), "")  # the folder is named once, nothing is read from it
