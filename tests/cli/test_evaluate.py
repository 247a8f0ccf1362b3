import json
import math

import pytest

from eggs_ptp.errors import CalibrationError


def test_packed_text(eggs, tiny, text_file):
    ran = eggs("evaluate", tiny(), "--text", text_file, "--seqlen", 64, "--max-windows", 5)
    assert ran.code == 0
    first, second = ran.out.splitlines()
    assert first.startswith("perplexity ")
    assert "(standard error)" in first
    assert second.startswith("packed: 5 windows of 64 tokens, packed without overlap; 315 tokens predicted in ")


def test_json_lines_are_documents(eggs, tiny, tmp_path):
    text = tmp_path / "text.jsonl"
    rows = ["x" * 300, "yes", "no"]
    text.write_text("".join(json.dumps({"story": row}) + "\n" for row in rows))
    ran = eggs("evaluate", tiny(), "--text", text, "--text-field", "story")
    assert "documents: 3 documents on their own, 1 cut at 128 tokens; 134 tokens predicted" in ran.out
    found = eggs("evaluate", tiny(), "--text", text, "--text-field", "story", "--protocol", "packed", "--json").json
    assert (found["protocol"], found["windows"], found["text"]) == ("packed", 2, str(text))
    assert found["value"] == pytest.approx(math.exp(found["nll"]))


def test_refuses_a_text_shorter_than_a_window(eggs, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("too short")
    assert "128" in eggs("evaluate", tiny(), "--text", text).error


def test_the_default_text_needs_the_hub(eggs, tiny, monkeypatch):
    from eggs_ptp import api

    def unreachable(name, **options):
        raise CalibrationError(f"{name} cannot be reached")

    monkeypatch.setattr(api, "hub_documents", unreachable)
    assert "wikitext" in eggs("evaluate", tiny()).error
