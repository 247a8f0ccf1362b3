"""A pytest plugin that writes the outcome of a run, with distinct warnings, to the file that `EGGS_OUTCOME` names."""

import json
import os
import re
from pathlib import Path
from typing import Any

# Without the path of the environment, and without the line of source that pytest shows.
_WARNING = re.compile(r"(?:.*/(?:site-packages|src)/)?(.*?):\d+: (\w+: .*)")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the outcome as JSON."""
    stats = terminalreporter.stats
    failed = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())]
    warnings = (_WARNING.match(report.message) for report in stats.get("warnings", ()))
    outcome = {
        "passed": len(stats.get("passed", ())),
        "failed": sorted(set(failed)),
        "skipped": len(stats.get("skipped", ())),
        "warnings": sorted({f"{match[1]}: {match[2]}" for match in warnings if match}),
    }
    Path(os.environ["EGGS_OUTCOME"]).write_text(json.dumps(outcome), encoding="utf-8")
