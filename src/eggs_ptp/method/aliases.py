"""Former names of recipe keys, their values, steps, options and data: they keep working, with a warning each.

A recipe may come from a file, a flag, `--set`, Python or the `eggs.json` of an older version; `with_current_names`
brings any of them to the current names. Programs that compare an older record's settings with today's call it too.
"""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

# Each table maps a former name to the current one.
RECIPE_KEYS: Final[Mapping[str, str]] = MappingProxyType({"orders": "permutation"})
RECIPE_VALUES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({"share": {"readers": "consumers"}})
STEPS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({"permute": {"deal": "allocate"}})  # by slot
OPTIONS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({"permute": {"dealing": "allocation"}})  # by slot
DATA: Final[Mapping[str, str]] = MappingProxyType({"slabs": "row_tiles"})


def with_current_names(table: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Return a recipe, or a part of one such as `{"steps": ...}`, with current names in place of former ones.

    A key that is there under both names is left as it is: checking the recipe refuses the former name.

    Args:
        table: The recipe as plain data; steps may be names, tables, or lists of these.
        quiet: Whether to leave the warnings out, as for records of older versions.
    """
    result: dict[str, Any] = {}
    for key, value in table.items():
        current = _renamed(key, RECIPE_KEYS, "recipe key", quiet) if RECIPE_KEYS.get(key) not in table else key
        result[current] = value
    for key, values in RECIPE_VALUES.items():
        if key in result:
            result[key] = _renamed(result[key], values, f"{key} =", quiet)
    if isinstance(steps := result.get("steps"), Mapping):
        result["steps"] = {slot: current_step(slot, step, quiet=quiet) for slot, step in steps.items()}
    if isinstance(targets := result.get("targets"), list | tuple):
        result["targets"] = [
            {**rule, **with_current_names({"steps": rule["steps"]}, quiet=quiet)}
            if isinstance(rule, Mapping) and "steps" in rule
            else rule
            for rule in targets
        ]
    return result


def current_step(slot: str, step: Any, *, quiet: bool = False) -> Any:
    """Return a step with current names in place of former ones.

    Options of the user's own functions (`package.module:function`) keep their names.

    Args:
        slot: The slot of the step.
        step: The step's name, its table (`name` and options; without `name`, options of the method's own step), or a
            list of these. Anything else is returned as it is.
        quiet: Whether to leave the warnings out.
    """
    if isinstance(step, list):
        return [current_step(slot, item, quiet=quiet) for item in step]
    if not isinstance(step, Mapping):
        return _renamed(step, STEPS.get(slot, {}), f"{slot} step", quiet)
    options = OPTIONS.get(slot, {}) if not _is_own(step.get("name")) else {}
    result = {}
    for key, value in step.items():
        if key == "name":
            result[key] = _renamed(value, STEPS.get(slot, {}), f"{slot} step", quiet)
        elif options.get(key) in step:
            result[key] = value
        else:
            result[_renamed(key, options, f"{slot} step option", quiet)] = value
    return result


def current_key(key: str, table: Mapping[str, Any], *, quiet: bool = False) -> str:
    """Return the current name of a dotted recipe key such as `steps.permute.dealing`.

    Args:
        key: The key.
        table: The recipe that the key belongs to, which tells whether a step is the user's own function.
        quiet: Whether to leave the warning out.
    """
    first, dot, rest = key.partition(".")
    if first in RECIPE_KEYS:
        return f"{_renamed(first, RECIPE_KEYS, 'recipe key', quiet)}{dot}{rest}"
    parts = key.split(".")
    if len(parts) != 3 or first != "steps":
        return key
    slot, option = parts[1:]
    steps = table.get("steps")
    step = steps.get(slot) if isinstance(steps, Mapping) else None
    if _is_own(step.get("name") if isinstance(step, Mapping) else step):
        return key
    return f"steps.{slot}.{_renamed(option, OPTIONS.get(slot, {}), f'{slot} step option', quiet)}"


def current_data_name(name: str, function: str) -> str:
    """Return the current name of a piece of data that a step's function takes.

    Args:
        name: The name of the function's parameter.
        function: How messages name the function.
    """
    return str(_renamed(name, DATA, f"{function}: data", quiet=False))


def _is_own(name: object) -> bool:
    """Return whether a step's name is one of the user's own functions."""
    return isinstance(name, str) and ":" in name


def _renamed(name: Any, names: Mapping[str, str], label: str, quiet: bool) -> Any:
    """Return the current name of `name`, with a warning if it is another one; `label` says what has that name."""
    if not isinstance(name, str) or name not in names:
        return name
    if not quiet:
        warnings.warn(f"{label} {name!r} is now {names[name]!r}", FutureWarning, stacklevel=1)
    return names[name]
