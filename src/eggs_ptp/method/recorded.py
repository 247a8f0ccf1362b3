"""The steps of a method as a record has them, compared with those of today."""

from collections.abc import Mapping
from typing import Any

from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step


def with_later_options(steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded steps with the options that came after the record, at their defaults.

    The default of an option that is added to a step is what the step did without it, so the result describes the same
    method.

    Args:
        steps: By slot a step's name and options, or a list of them for an update pipeline.

    Returns:
        The same with all options that the steps have today; a step that is no longer there stays as it is.
    """
    return {
        slot: [_complete(slot, step) for step in recorded] if isinstance(recorded, list) else _complete(slot, recorded)
        for slot, recorded in steps.items()
    }


def _complete(slot: str, recorded: Any) -> Any:
    if not isinstance(recorded, Mapping) or "name" not in recorded:
        return recorded
    try:
        defaults = Step(recorded["name"]).bind(slot).to_dict()
    except MethodError:
        return recorded
    return {**defaults, **recorded} if isinstance(defaults, Mapping) else recorded
