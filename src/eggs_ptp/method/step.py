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

SLOTS = ("correct", "score", "permute", "select", "refine", "update", "tune")

# What a function of each slot may name as a positional parameter, beside the statistics. `start` is what an update
# step before this one has made of the weights, None for the first; `slabs` says who works on which rows, and what does
# so can be shared out (core/slabs.py).
DATA: Mapping[str, frozenset[str]] = {
    "correct": frozenset({"weight", "slabs"}),
    "score": frozenset({"weight", "generator"}),
    "permute": frozenset({"score", "pattern", "slabs"}),
    "select": frozenset({"score", "weight", "pattern", "slabs", "generator"}),
    "refine": frozenset({"mask", "score", "weight", "pattern", "role", "slabs", "generator"}),
    "update": frozenset({"weight", "mask", "start", "pattern", "slabs"}),
    "tune": frozenset({"block", "masks", "inputs", "target", "call", "logits", "generator"}),
}
# A permutation is shared by readers, so it sees their scores and nothing else; tuning sees a whole block.
_NO_STATISTICS = frozenset({"permute", "tune"})


@dataclass(frozen=True)
class Step:
    """An ingredient: the function `name` of its slot's folder (or `package.module:function`) and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> "Step":
        """The same step with some options changed."""
        return Step(self.name, {**self.options, **options})

    def bind(self, slot: str, place: str = "") -> "Bound":
        """Look the function up, check the options against its signature, and say what data it wants.

        `place` is how messages call the step where it is one of a chain: `steps.update[1]`.

        Raises:
            MethodError: no such function, an option it does not have, or a value out of range.
        """
        place = place or f"steps.{slot}"
        function = _find(slot, self.name, place)
        data, options, patterns = _signature(slot, self.name, function)
        for key in self.options:
            if key not in options:
                raise MethodError(
                    f"{place}.{key}: {slot} step {self.name!r} has no option {key!r}{nearest(key, options)}"
                )
        values = {key: default for key, (_, default) in options.items()}
        for key, value in self.options.items():
            values[key] = _checked(f"{place}.{key}", options[key][0], value)
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

    @property
    def links(self) -> tuple["Bound", ...]:
        """The functions behind this step, in order: itself alone."""
        return (self,)

    def __call__(self, read: Callable[[str], Any], **given: Any) -> Any:
        """Call the function; `read(name)` supplies each piece of data that is not `given`."""
        given.setdefault("start", None)
        return self.function(*(given[name] if name in given else read(name) for name in self.data), **self.options)

    def to_dict(self) -> Any:
        """Plain data with every option spelled out."""
        return {"name": self.name, **self.options}


def names(slot: str) -> tuple[str, ...]:
    """The ingredients of a slot: the public files of its folder (nothing is imported)."""
    folders = [f"{root}/{slot}" for root in eggs_ptp.__path__]
    return tuple(sorted(found.name for found in pkgutil.iter_modules(folders) if found.name[0] != "_"))


def _find(slot: str, name: str, place: str) -> Callable[..., Any]:
    if slot not in SLOTS:
        raise MethodError(f"steps.{slot}: no such slot, expected one of {', '.join(SLOTS)}{nearest(slot, SLOTS)}")
    module, _, function = name.partition(":")
    if not function:
        if name not in names(slot):
            known = ", ".join(names(slot)) or "none"
            raise MethodError(
                f"{place}: no {slot} step is named {name!r}{nearest(name, names(slot))}; known: {known}, "
                "or your own as package.module:function"
            )
        module, function = f"eggs_ptp.{slot}.{name}", name
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of the user's own raises
        raise MethodError(f"{place}: {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isfunction(found):
        raise MethodError(f"{place}: {name!r} is no Python function, but {type(found).__name__}")
    return found


@functools.lru_cache(maxsize=256)
def _signature(
    slot: str, name: str, function: Callable[..., Any]
) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]], type | None]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise MethodError(f"{slot} step {name!r}: an annotation cannot be read at run time ({error})") from error
    found = {name for name, statistic in STATISTICS.items() if slot == "correct" or statistic.side != "dense"}
    allowed = DATA[slot] | (frozenset() if slot in _NO_STATISTICS else found)
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
