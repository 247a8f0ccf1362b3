"""Step: one ingredient by name with its options, bound to a function whose signature says what it needs."""

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

import eggs_ptp
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.errors import MethodError
from eggs_ptp.method.nearest import nearest

SLOTS = ("score", "permute", "select", "refine", "update")

# What a function of each slot may name as a positional parameter, beside the statistics.
DATA: Mapping[str, frozenset[str]] = {
    "score": frozenset({"weight", "generator"}),
    "permute": frozenset({"score", "pattern"}),
    "select": frozenset({"score", "weight", "pattern", "generator"}),
    "refine": frozenset({"mask", "score", "weight", "pattern", "role", "generator"}),
    "update": frozenset({"weight", "mask", "pattern"}),
}
_NO_STATISTICS = frozenset({"permute"})  # a permutation is shared by readers: it sees their scores, nothing else


@dataclass(frozen=True)
class Step:
    """An ingredient: the function `name` of its slot's folder (or `package.module:function`) and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> "Step":
        """The same step with some options changed."""
        return Step(self.name, {**self.options, **options})

    def bind(self, slot: str) -> "Bound":
        """Look the function up, check the options against its signature, and say what data it wants.

        Raises:
            MethodError: no such function, an option it does not have, or a value out of range.
        """
        function = _find(slot, self.name)
        data, options, patterns = _signature(slot, self.name, function)
        for key in self.options:
            if key not in options:
                raise MethodError(
                    f"steps.{slot}.{key}: {slot} step {self.name!r} has no option {key!r}{nearest(key, options)}"
                )
        values = {key: default for key, (_, default) in options.items()}
        for key, value in self.options.items():
            values[key] = _checked(f"steps.{slot}.{key}", options[key][0], value)
        return Bound(slot, self.name, function, data, values, patterns)


@dataclass(frozen=True)
class Bound:
    """A step with its function: `data` in the order of the positional parameters, `options` complete."""

    slot: str
    name: str
    function: Callable[..., Any]
    data: tuple[str, ...]
    options: Mapping[str, Any]
    patterns: type | None  # the kind of pattern that the function is annotated for; None: any

    @property
    def statistics(self) -> frozenset[str]:
        """The activation statistics that the function wants."""
        return frozenset(self.data) & STATISTICS.keys()

    def __call__(self, read: Callable[[str], Any]) -> Any:
        """Call the function; `read(name)` supplies each piece of data."""
        return self.function(*(read(name) for name in self.data), **self.options)


def names(slot: str) -> tuple[str, ...]:
    """The ingredients of a slot: the public files of its folder (nothing is imported)."""
    folders = [f"{root}/{slot}" for root in eggs_ptp.__path__]
    return tuple(sorted(found.name for found in pkgutil.iter_modules(folders) if found.name[0] != "_"))


def _find(slot: str, name: str) -> Callable[..., Any]:
    if slot not in SLOTS:
        raise MethodError(f"steps.{slot}: no such slot, expected one of {', '.join(SLOTS)}{nearest(slot, SLOTS)}")
    module, _, function = name.partition(":")
    if not function:
        if name not in names(slot):
            known = ", ".join(names(slot)) or "none"
            raise MethodError(
                f"steps.{slot}: no {slot} step is named {name!r}{nearest(name, names(slot))}; known: {known}, "
                "or your own as package.module:function"
            )
        module, function = f"eggs_ptp.{slot}.{name}", name
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of the user's own raises
        raise MethodError(f"steps.{slot}: {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isfunction(found):
        raise MethodError(f"steps.{slot}: {name!r} is no Python function, but {type(found).__name__}")
    return found


@functools.lru_cache(maxsize=256)
def _signature(
    slot: str, name: str, function: Callable[..., Any]
) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]], type | None]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise MethodError(f"{slot} step {name!r}: an annotation cannot be read at run time ({error})") from error
    allowed = DATA[slot] | (frozenset() if slot in _NO_STATISTICS else STATISTICS.keys())
    data: list[str] = []
    options: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if parameter.default is inspect.Parameter.empty:
                raise MethodError(f"{slot} step {name!r}: option {parameter.name!r} has no default")
            options[parameter.name] = (hints.get(parameter.name, Any), parameter.default)
        elif parameter.name in allowed:
            data.append(parameter.name)
        else:
            raise MethodError(
                f"{slot} step {name!r}: parameter {parameter.name!r} is no data that a {slot} step can have "
                f"(expected some of {', '.join(sorted(allowed))}; options must be keyword-only)"
            )
    return tuple(data), options, kind if (kind := hints.get("pattern")) in (Pattern, Unstructured) else None


def _checked(key: str, expected: Any, value: Any) -> Any:
    try:
        return TypeAdapter(expected).validate_python(
            value, strict=not isinstance(value, int) or isinstance(value, bool)
        )
    except ValidationError as error:
        reasons = list(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise MethodError(f"{key}: {value!r} is not possible: {'; or '.join(reasons)}") from None
