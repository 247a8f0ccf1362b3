"""Method: a row of at most five steps, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eggs_ptp.core.pattern import AnyPattern, Pattern
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.step import SLOTS, Bound, Step


@dataclass(frozen=True)
class Method:
    """Score, permute, select, refine, update: which ingredient fills each slot, and with which options.

    A method needs `select` or `update`; `permute` and `select` need `score`; `refine` needs `select`.
    """

    name: str
    title: str
    source: str
    steps: Mapping[str, Step] = field(default_factory=dict)

    def replace(self, **steps: Step | None) -> "Method":
        """The same method with some slots refilled, or emptied by None."""
        merged = {**self.steps, **steps}
        return replace(self, steps={slot: step for slot, step in merged.items() if step is not None})

    def with_options(self, changes: Mapping[str, Mapping[str, Any]]) -> "Method":
        """Apply the `[steps]` table of a recipe: `{"score": {"name": "ria", "alpha": 0.7}}`.

        A slot's options are changed where no `name` is given, or where it is the name the slot already has;
        another name replaces the step. `{"name": "none"}` empties the slot.
        """
        steps = dict(self.steps)
        for slot, given in changes.items():
            options = dict(given)
            name = options.pop("name", None)
            if name == "none":
                steps.pop(slot, None)
            elif name is None or (slot in steps and steps[slot].name == name):
                if slot not in steps:
                    raise MethodError(f"steps.{slot}: method {self.name!r} has no {slot} step, so give its name")
                steps[slot] = steps[slot].with_options(**options)
            else:
                steps[slot] = Step(str(name), options)
        return replace(self, steps=steps)

    def bind(self, *, given_mask: bool = False) -> "BoundMethod":
        """Check the row and look its functions up.

        With a `given_mask` permute and select steps are left out, and the score where nothing that is left reads it.

        Raises:
            MethodError: slots that do not fit together, unknown steps or options.
        """
        bound = {slot: step.bind(slot) for slot, step in self.steps.items()}
        if given_mask:
            left = {slot: step for slot, step in bound.items() if slot in ("refine", "update")}
            if "score" in bound and any("score" in step.data for step in left.values()):
                left = {"score": bound["score"], **left}
            return BoundMethod(self, left)
        for slot, needs in (("select", "score"), ("permute", "score"), ("refine", "select")):
            if slot in bound and needs not in bound:
                raise MethodError(f"steps.{slot}: a {slot} step needs a {needs} step, and {self.name!r} has none")
        if "select" not in bound and "update" not in bound:
            raise MethodError(f"method {self.name!r} neither selects nor updates: give steps.select or steps.update")
        if "score" in bound and not any("score" in step.data for step in bound.values()):
            raise MethodError(
                f"steps.score: nothing in {self.name!r} reads the score of {bound['score'].name!r}; give steps.select "
                "(such as top), or leave the score out"
            )
        return BoundMethod(self, {slot: bound[slot] for slot in SLOTS if slot in bound})

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every option spelled out, for records."""
        bound = self.bind()
        return {
            "name": self.name,
            "steps": {slot: {"name": step.name, **step.options} for slot, step in bound.steps.items()},
        }


@dataclass(frozen=True)
class BoundMethod:
    """A method whose functions have been found and whose options have been checked."""

    method: Method
    steps: Mapping[str, Bound]

    @property
    def statistics(self) -> frozenset[str]:
        """Union of what the steps ask for; empty for methods that need no calibration data."""
        return frozenset().union(*(step.statistics for step in self.steps.values()))

    def check_pattern(self, pattern: AnyPattern, name: str) -> None:
        """Refuse a pattern that a step cannot serve.

        Raises:
            PatternError: unstructured for a step that is defined for N:M only, or the reverse; `name` says where.
        """
        for slot, step in self.steps.items():
            if step.patterns and not isinstance(pattern, step.patterns):
                expected = "an N:M pattern such as 2:4" if step.patterns is Pattern else "a sparsity such as 0.5"
                raise PatternError(
                    f"{name}: {slot} step {step.name!r} of method {self.method.name!r} needs {expected}, not {pattern}"
                )
