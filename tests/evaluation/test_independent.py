"""Perplexity of WikiText-2 by a script that knows nothing of this project, which docs/evaluating.md shows."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from eggs_ptp import api

PAGE = Path(__file__).parents[2] / "docs" / "evaluating.md"


def script():
    (found,) = [
        text
        for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
        if "sys.argv" in text
    ]
    assert "eggs" not in found
    assert found.count("\n") <= 21
    return found


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run the script and `eggs evaluate`'s function on a text; equal numbers."""
    path = tmp_path / "script.py"
    path.write_text(script(), encoding="utf-8")

    def both(folder, text, limit):
        monkeypatch.setattr(sys, "argv", [str(word) for word in (path, folder, text, 512, limit)])
        runpy.run_path(str(path))
        expected = float(capsys.readouterr().out)
        ours = api.evaluate(str(folder), str(text), seqlen=512, max_windows=limit)
        assert ours.value == pytest.approx(expected, rel=1e-5)
        return ours

    return both


def test_our_number_is_that_of_a_script_of_twenty_lines(check, shared, tmp_path):
    lines = (shared / "data/wikitext2/wiki.test.raw").read_text(encoding="utf-8").split("\n")[:60]
    (tmp_path / "wiki.test.raw").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert check(shared / "data/models/tinystories-656k", tmp_path / "wiki.test.raw", 10).windows == 10


@pytest.mark.slow
def test_so_is_that_of_the_whole_test_split(check, shared):
    ours = check(shared / "data/models/tinystories-656k", shared / "data/wikitext2/wiki.test.raw", 10**6)
    assert ours.windows == ours.text_tokens // 512
