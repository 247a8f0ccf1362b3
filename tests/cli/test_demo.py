import json
from types import SimpleNamespace

import pytest

from eggs_ptp import api
from eggs_ptp.cli import demo
from eggs_ptp.evaluation.perplexity import Perplexity


@pytest.fixture
def pruned(monkeypatch):
    """Replace pruning and evaluation; the fixture lists (output, method, B, overwrite) of each pruning."""
    calls = []

    def prune(model, output, recipe, *, overwrite, listener, shared):
        assert (model, str(recipe.pattern)) == ("demo", "2:4")
        select = recipe.bound().steps.get("select")
        blocks = select.options.get("B") if select else None
        calls.append((str(output), recipe.method, blocks, overwrite))
        output.mkdir(parents=True, exist_ok=True)
        (output / "eggs.json").write_text(json.dumps({"format": 1, "source": {"model": "demo"}, "matrices": []}))
        matrices = [] if blocks is None else [{"B": 3}, {"B": 4}] if blocks == "auto" else [{"B": blocks}]
        return SimpleNamespace(seconds=1.5, peak_memory_bytes=4e8, matrices=matrices)

    def evaluate(model, begin):
        assert begin == "never"
        value = 30.0 if model == "demo" else 50.0 + len(calls)
        return Perplexity(value, "packed", 512, 116, 59276, 0, 3.4, 0.01, 1.0)

    monkeypatch.setattr(api, "prune", prune)
    monkeypatch.setattr(api, "evaluate", evaluate)
    monkeypatch.setattr(demo, "sample", lambda model: f"text of {model}")
    return calls


def test_the_table_has_every_method_and_eggs_with_fixed_and_automatic_blocks(eggs, pruned, tmp_path):
    out = tmp_path / "out"
    ran = eggs("demo", "-o", out)
    assert ran.code == 0
    assert [(method, blocks) for _, method, blocks, _ in pruned] == [
        ("eggs+", None),
        ("magnitude", None),
        ("wanda", None),
        ("ria", None),
        ("ria_cp", None),
        ("eggs", "auto"),
        ("sparsegpt", None),
        ("eggs", 0),
        ("eggs", 1),
        ("eggs", 2),
        ("eggs", 5),
    ]
    assert [method for path, method, _, _ in pruned if path == str(out)] == ["eggs+"]
    words = " ".join(ran.out.split())
    for row in (
        "dense 30.00 1.00",
        "magnitude 52.00 1.73 1.50 seconds 400.0 MB",
        "ria + permutation 55.00 1.83",
        "eggs (B automatic) 56.00 1.87 1.50 seconds 400.0 MB 3 to 4, mean 3.5",
        "eggs+ 51.00 1.70",
        "eggs, B = 5 61.00 2.03 1.50 seconds 400.0 MB 5",
        "Sample of dense: text of demo",
        f"Sample of eggs+: text of {out}",
        "eggs prune demo --method eggs-max",
    ):
        assert row in words


def test_as_json(eggs, pruned, tmp_path):
    result = eggs("demo", "-o", tmp_path / "out", "--json").json
    assert [row["label"] for row in result["rows"]] == [variant.label for variant in demo.VARIANTS]
    assert result["rows"][0]["ratio"] == pytest.approx(52 / 30)
    assert result["dense"]["value"] == 30.0


def test_only_the_output_of_a_demo_is_replaced(eggs, pruned, tmp_path):
    eggs("demo", "-o", tmp_path / "out")
    eggs("demo", "-o", tmp_path / "out")
    assert [overwrite for path, _, _, overwrite in pruned if path == str(tmp_path / "out")] == [False, True]
    (tmp_path / "out/eggs.json").write_text(json.dumps({"format": 1, "source": {"model": "mine"}, "matrices": []}))
    eggs("demo", "-o", tmp_path / "out")
    assert [overwrite for path, _, _, overwrite in pruned if path == str(tmp_path / "out")] == [False, True, False]


def test_prune_verify_evaluate_and_generate_on_the_built_in_model(eggs, tmp_path):
    out = tmp_path / "out"
    assert eggs("prune", "demo", "-o", out, "--nsamples", 4, "--seqlen", 64).code == 0
    assert eggs("verify", out, "--against", "demo").code == 0
    dense, pruned = (
        eggs("evaluate", model, "--max-windows", 3, "--json").json["perplexity"]["value"] for model in ("demo", out)
    )
    assert dense < pruned
    assert eggs("generate", out, "--prompt", demo.PROMPT, "--tokens", 5).out.startswith(demo.PROMPT.strip())


@pytest.mark.slow
def test_the_whole_demo(eggs, tmp_path):
    result = eggs("demo", "-o", tmp_path / "out", "--json").json
    values = {row["label"]: row["perplexity"] for row in result["rows"]}
    assert values["magnitude"] > 1.5 * result["dense"]["value"]
    assert values["eggs+"] < values["sparsegpt"] < values["eggs (B automatic)"] < values["ria"] < values["magnitude"]
    assert values["eggs, B = 0"] == pytest.approx(values["ria + permutation"])
    assert eggs("verify", tmp_path / "out", "--against", "demo").code == 0
