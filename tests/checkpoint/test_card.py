"""The model card."""

import re

import pytest
from huggingface_hub import ModelCard

from eggs_ptp.checkpoint.card import check_base_model, write_card
from eggs_ptp.checkpoint.run_record import RunRecord
from eggs_ptp.errors import CheckpointError

CALIBRATION = {"source": "texts/c4.jsonl", "nsamples": 128, "seqlen": 2048, "sampling": "packed"}
MATRIX = {
    "name": "model.layers.0.mlp.up_proj",
    "shape": [6, 8],
    "pattern": "2:4",
    "method": "eggs",
    "density": 0.5,
    "permuted": True,
    "updated": False,
    "output_error": 0.25,
}


def card(
    *matrices, model="Qwen/Qwen3-0.6B", calibration=CALIBRATION, permutations="gather", source_card=None, base=None
):
    record = RunRecord(
        source={"model": model},
        recipe={},
        recipe_sha256="c0ffee",
        calibration=calibration,
        device="cpu",
        dtype="float32",
        matrices=list(matrices or [MATRIX]),
        permutations=permutations,
    )
    return write_card(record, {"model_type": "qwen3"}, source_card, base)


def front_matter(text):
    return re.match(r"---\n(.*?)\n---\n\n# ", text, re.DOTALL)[1].splitlines()


def test_the_front_matter_is_what_the_hub_reads():
    assert front_matter(card()) == [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "base_model: Qwen/Qwen3-0.6B",
        "tags:",
        '- "pruned"',
        '- "sparse"',
        '- "2:4"',  # unquoted it would be the number 124
        '- "eggs"',
        '- "eggs-ptp"',
    ]


@pytest.mark.parametrize("model", ["demo", "/home/somebody/private/Qwen3-0.6B", "../models/x", "models/x", "~/x"])
def test_a_local_model_is_no_base_model_and_its_path_is_not_published(model, tmp_path, monkeypatch):
    (tmp_path / "models" / "x").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = card(model=model)
    assert not any(line.startswith("base_model") for line in front_matter(text))
    assert "somebody" not in text


def test_the_table_says_what_was_done():
    text = card(MATRIX, {**MATRIX, "shape": [2, 8], "pattern": "4:8", "density": 0.25, "output_error": 0.75})
    assert "# Qwen3-0.6B, pruned to 2:4 and 4:8\n" in text
    assert "| matrices pruned | 2 |" in text
    assert "| weights kept in them | 0.4375 of 64 |" in text  # (48 * 0.5 + 16 * 0.25) / 64
    assert "| mean relative output error | 0.5000 |" in text
    assert "| calibration | 128 windows of 2048 tokens (packed), c4.jsonl |" in text
    assert "| recipe sha256 | `c0ffee` |" in text
    begun = card(calibration={**CALIBRATION, "begin_tokens": [2]})
    assert "| calibration | 128 windows of 2048 tokens (packed, begin token first), c4.jsonl |" in begun
    assert "(packed), c4.jsonl |" in card(calibration={**CALIBRATION, "begin_tokens": []})


def test_permutations_are_explained_if_there_are_any():
    plain = {**MATRIX, "permuted": False}
    gathered = card(MATRIX, plain)
    assert "1 matrices satisfy their pattern in a channel permutation" in gathered
    assert "original order" in gathered
    assert "permut" not in card(plain, permutations=None)
    folded = card(permutations="fold")
    assert "every N:M matrix satisfies its pattern in the column order that it is stored in" in folded
    assert "original order" not in folded


def test_a_method_without_calibration_says_so():
    text = card({**MATRIX, "method": "magnitude", "output_error": None}, calibration=None)
    assert "| mean relative output error | not measured |" in text
    assert "| calibration | none needed |" in text


@pytest.mark.parametrize(
    ("model", "base"), [("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("/data/mine", "a/base"), ("demo", "a/base")]
)
def test_the_hub_reads_what_is_carried_over_from_the_source_card(model, base):
    carried = {"license": "other", "license_name": "x: y", "license_link": "LICENSE", "language": ["no", "en"]}
    carried |= {"datasets": ["a/b"], "base_model": "a/base"}
    data = ModelCard(card(model=model, source_card=carried)).data
    assert {key: getattr(data, key) for key in carried} == {**carried, "base_model": base}
    assert data.tags == ["pruned", "sparse", "2:4", "eggs", "eggs-ptp"]


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "/home/somebody/model"])
def test_a_given_base_model_is_named_once(model):
    lines = front_matter(card(model=model, source_card={"base_model": "of/card"}, base="owner/name"))
    assert [line for line in lines if line.startswith("base_model")] == ["base_model: owner/name"]


@pytest.mark.parametrize("name", ["/home/somebody/model", "a/b/c", "", "owner/na me", "-x", "owner/name.git"])
def test_a_base_model_that_the_hub_does_not_accept_is_refused(name):
    with pytest.raises(CheckpointError, match=f"a name of the hub .*got {re.escape(repr(name))}"):
        check_base_model(name)
