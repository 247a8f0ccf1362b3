"""Running verbs in this process."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from eggs_ptp.cli.main import main


class Ran(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of a refusal, the last on stderr (the plan may stand before it)."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        *before, last = self.err.splitlines()
        assert last.startswith("eggs: error: "), self.err
        assert not any(line.startswith("eggs: ") for line in before)
        return last.removeprefix("eggs: error: ")


@pytest.fixture
def eggs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`eggs("plan", folder)` runs the command."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run
