"""docs/reproduction.md states what its records have, and what the papers' rows require."""

import json
from pathlib import Path

import pytest

from eggs_ptp.research.reproduction.published import published

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Build the page from these records, by name."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import reproduction_page

    def build_page(**records):
        for name, record in records.items():
            (tmp_path / f"{name.replace('_', '-')}.json").write_text(json.dumps(record))
        monkeypatch.setattr(reproduction_page, "RECORDS", tmp_path)
        return reproduction_page.reproduction()

    return build_page


def test_every_table_has_its_commands_and_requirements(page):
    text = page()
    assert text.count("Not run here on any model.") == len(published())
    for name, item in published().items():
        assert f"| [{name}](#{name}) | {item.paper.title}, {item.place} | 0 of " in text
        if item.measure != "speed":
            assert all(f"eggs reproduce {name} --model {model.hub} -o out/" in text for model in item.models)


def test_recorded_numbers_are_shown(page):
    labels = [[], ["S2"], ["S3"]]
    cells = [{"row": row, "column": "m", "ours": 10 + n, "deviation": None} for n, row in enumerate(labels)]
    cells.append({"row": ["S4"], "column": "m", "ours": None, "deviation": None})
    record = {
        "command": "eggs it",
        "model": "m",
        "measure": "perplexity",
        "heads": ["Strategy"],
        "columns": ["m"],
        "numbers": cells,
        "claims": [],
        "not_run": ["S4 failed"],
        "runs": [{"calibration": {"nsamples": 2, "seqlen": 32, "source": "a text"}}],
        "dense": {"perplexity": 10.0, "evaluation": {"windows": 3, "protocol": "packed", "seqlen": 32}},
    }
    text = page(table_8=record)
    assert "| [table-8](#table-8) | Symmetric Pruning, Table 8 | 2 of 4 | m | hub, GPU |" in text
    measured = "Perplexity; calibrated on 2 windows of 32 tokens of a text; dense perplexity 10.00 on 3 packed windows"
    assert f"Run here: `eggs it`. {measured} of 32 tokens." in text
    assert "| dense | 10.00 |\n| S2 | 11.00 |\n| S3 | 12.00 |\n| S4 | - |\n" in text
    assert "- S4 failed" in text
    assert text.count("Not run here on any model.") == len(published()) - 1
