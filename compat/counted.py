"""A pytest plugin that writes what a run came to, with its distinct warnings, to the file that `EGGS_COUNTED` names."""

import json
import os
import re
from pathlib import Path
from typing import Any

# Where in an environment a package lies is of no interest, nor the line of source that pytest shows below.
_WARNING = re.compile(r"(?:.*/(?:site-packages|src)/)?(.*?):\d+: (\w+: .*)")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The outcome as JSON."""
    stats = terminalreporter.stats
    bad = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())]
    found = (_WARNING.match(report.message) for report in stats.get("warnings", ()))
    counted = {
        "passed": len(stats.get("passed", ())),
        "failed": sorted(set(bad)),
        "skipped": len(stats.get("skipped", ())),
        "warnings": sorted({f"{match[1]}: {match[2]}" for match in found if match}),
    }
    Path(os.environ["EGGS_COUNTED"]).write_text(json.dumps(counted), encoding="utf-8")
