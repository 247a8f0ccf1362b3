"""Arbitrary command lines: success, or a one-line error and exit code 2; never a traceback."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eggs_ptp.cli.main import main

# A model, a broken model, an empty folder, and paths that do not exist.
PATHS = ["model", "broken", "empty", "nowhere", "model/config.json", "owner/name", "", "."]
FLAGS = [
    "--pattern",
    "--method",
    "--set",
    "--calibration",
    "--nsamples",
    "--seqlen",
    "--seed",
    "--permutation",
    "--orders",
    "--include",
    "--exclude",
    "--recipe",
    "--mask",
    "--device",
    "--dtype",
    "--revision",
    "--try",
    "--overwrite",
    "--no-journal",
    "--format",
    "--values",
    "--masks",
    "--against",
    "--text",
    "--limit",
    "--record",
    "--max-windows",
    "--protocol",
    "--tasks",
    "--data",
    "--stride",
    "--prompt",
    "--debug",
    "--nonsense",
    "-o",
    "--output",
    "--title",
    "--batches",
]
WORDS = [
    "2:4",
    "4:2",
    "0.5",
    "magnitude",
    "wanda+nothing",
    "steps.score.alpha=",
    "=",
    "a=b",
    "8",
    "-1",
    "0",
    "1e9",
    "nan",
    "cpu",
    "cuda:9",
    "float16",
    "packed",
    "dense",
    "int4",
    "[",
    "out",
    "text.txt",
    "masks.npz",
    "recipe.toml",
    "\ud8ff",
]
VERBS = [
    "prune",
    "plan",
    "verify",
    "diagnose",
    "export",
    "evaluate",
    "report",
    "generate",
    "methods",
    "compare",
    "nothing",
]
values = st.one_of(st.sampled_from(PATHS), st.sampled_from(WORDS), st.text(max_size=6))
flags = st.one_of(st.tuples(st.sampled_from(FLAGS), values), values.map(lambda value: (value,)))
commands = st.builds(
    lambda verb, path, options: [verb, path, *(word for option in options for word in option)],
    st.sampled_from(VERBS),
    st.sampled_from(PATHS),
    st.lists(flags, max_size=4),
)


@pytest.fixture(scope="module")
def workspace(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny("llama"), folder / "model")
    shutil.copytree(tiny("llama"), folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("few words")
    (folder / "masks.npz").write_bytes(b"PK\x03\x04")
    (folder / "recipe.toml").write_text("pattern = 2:4")
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(commands)
@example(["prune", "model", "-o", "out", "--method", "magnitude", "--device", "nothing"])
@example(["prune", "model", "-o", "broken/config.json", "--method", "magnitude"])
@example(["prune", "model", "-o", "model/inside", "--method", "magnitude"])
@example(["plan", "\0", "--method", "magnitude"])
@example(["verify", "a" * 5000])
@example(["plan", "model", "--recipe", "\0"])
@example(["prune", "model", "-o", "\0", "--method", "magnitude"])
@example(["export", "model", "--masks", "nowhere/masks.safetensors"])
@example(["evaluate", "model", "--text", "\0"])
@example(["plan", "model", "--calibration", "a" * 5000])
@example(["report", "-o", "model", "empty"])
def test_any_command_line(workspace, capsys, monkeypatch, arguments):
    before = {path: path.read_bytes() for path in workspace.glob("model/*")}
    with monkeypatch.context() as patch:
        patch.chdir(workspace)
        capsys.readouterr()
        code = main(arguments)
    error = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert "Traceback" not in error or "--debug" in arguments
    if code == 2:
        assert error.splitlines()[-1].startswith("eggs: error: ")
        assert len(error.splitlines()[-1]) > len("eggs: error: ")
    assert {path: path.read_bytes() for path in workspace.glob("model/*")} == before
    assert not [path for path in workspace.rglob(".*") if path.name.endswith(".draft")]
    shutil.rmtree(workspace / "out", ignore_errors=True)
    assert os.path.isdir(workspace / "model")
