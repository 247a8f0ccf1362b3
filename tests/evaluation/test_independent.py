"""Perplexity of WikiText-2 against the script in docs/evaluating.md, which does not use this package."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from eggs_ptp import api

PAGE = Path(__file__).parents[2] / "docs" / "evaluating.md"


def script():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (source,) = [block for block in blocks if "sys.argv" in block]
    assert "eggs" not in source
    assert source.count("\n") <= 21
    return source


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """`compare(folder, text, limit)`: check that script and `api.evaluate` get the same perplexity; return it."""
    path = tmp_path / "script.py"
    path.write_text(script(), encoding="utf-8")

    def run_both(folder, text, limit):
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in (path, folder, text, 512, limit)])
        runpy.run_path(str(path))
        expected = float(capsys.readouterr().out)
        measured = api.evaluate(str(folder), str(text), seqlen=512, max_windows=limit)
        assert measured.value == pytest.approx(expected, rel=1e-5)
        return measured

    return run_both


def test_the_perplexity_equals_that_of_a_script_of_twenty_lines(compare, shared, tmp_path):
    lines = (shared / "data/wikitext2/wiki.test.raw").read_text(encoding="utf-8").split("\n")[:60]
    (tmp_path / "wiki.test.raw").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert compare(shared / "data/models/tinystories-656k", tmp_path / "wiki.test.raw", 10).windows == 10


@pytest.mark.slow
def test_the_perplexity_of_the_complete_test_split_equals_the_scripts(compare, shared):
    measured = compare(shared / "data/models/tinystories-656k", shared / "data/wikitext2/wiki.test.raw", 10**6)
    assert measured.windows == measured.text_tokens // 512
