"""Every example runs on the built-in model, and prints what it is there to show."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from eggs_ptp import api
from eggs_ptp.recipe.read import read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "first-hour.ipynb"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("own_score")`: what the script prints, as one text."""

    def script(name):
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / "out")])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield script
    sys.modules.pop("own_score", None)


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_every_example_is_listed_and_tested():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb", ".toml")}
    assert set(re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.M)) == files
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in files if name.partition(".")[0] not in tests] == []


def test_prune_and_serve(run, tmp_path):
    assert "28 matrices pruned" in (text := run("prune_and_serve"))
    assert "If the argument" in text
    dense, packed = ((tmp_path / "out" / name / "model.safetensors").stat().st_size for name in ("pruned", "packed"))
    assert packed < dense


def test_own_score(run):
    first, second = run("own_score").splitlines()
    assert first.startswith("mean = 0.0: perplexity ")
    assert 20 < numbers(first)[-1] != numbers(second)[-1]


def test_own_calibration_mix(run):
    manual, mixed, code = (dict(zip(("manual", "code"), numbers(line), strict=True)) for line in lines_of_mix(run))
    assert code["code"] < manual["code"]
    assert manual["manual"] < code["manual"]
    assert mixed["code"] < manual["code"]


def lines_of_mix(run):
    return [line.partition("perplexity on ")[2] for line in run("own_calibration_mix").splitlines()]


def test_compare_two_methods(run):
    wanda, permuted, ratio = run("compare_two_methods").splitlines()
    assert numbers(wanda)[0] > numbers(permuted)[0]
    value, low, high = numbers(ratio)[-3:]
    assert 1 < low < value < high


def test_fine_tune_with_zeros_kept(run):
    pruned, tuned = (numbers(line)[0] for line in run("fine_tune_with_zeros_kept").splitlines())
    assert tuned < pruned


@pytest.mark.slow
def test_several_processes(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "several_processes.sh"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same weights\n")


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook's tools, which this project does not control
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    texts = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert "ok\n" in texts
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert not any("Traceback" in text or "eggs: error" in text for text in texts)


def test_group_descent(tmp_path):
    perplexity = {}
    for recipe in (EXAMPLES / "group-descent.toml", None):
        out = tmp_path / ("sparsegpt" if recipe is None else "group-descent")
        record = api.prune("demo", out, read_recipe(recipe, (), method=None if recipe else "sparsegpt", nsamples=32))
        assert {matrix["density"] for matrix in record.matrices} == {0.5}
        assert api.verify(out, "demo").ok
        perplexity[out.name] = api.evaluate(out, max_windows=20).value
    assert perplexity["group-descent"] < 0.85 * perplexity["sparsegpt"]
