"""Methods: which step fills each of the seven slots, and what follows from that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eggs_ptp.core.pattern import AnyPattern, Pattern
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.aliases import current_step
from eggs_ptp.method.step import SLOTS, BoundStep, Step
from eggs_ptp.method.update_pipeline import BoundUpdatePipeline, UpdatePipeline, pipeline_of

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # of one step, or of each step of an update pipeline

# What the first slot needs the second one for.
_REQUIRED = (("select", "score"), ("permute", "score"), ("refine", "select"))
_SLOTS_WITH_GIVEN_MASK = ("correct", "refine", "update", "tune")


@dataclass(frozen=True)
class Method:
    """A pruning method: a row of steps, one for each slot that it fills (see `method.step`).

    A method has a `select` or an `update` step, as one of the two must return a mask; `permute` and `select` need
    `score`, and `refine` needs `select`. `update` may be a pipeline of several steps.

    Attributes:
        name: Name, as in a recipe.
        title: What it does, in half a line.
        source: Where it was published.
        steps: The steps by slot.
    """

    name: str
    title: str
    source: str
    steps: Mapping[str, Step | UpdatePipeline] = field(default_factory=dict)

    def replace(self, **steps: Step | UpdatePipeline | None) -> "Method":
        """Return the same method with other steps in some slots; None empties a slot."""
        merged = {**self.steps, **steps}
        return replace(self, steps={slot: step for slot, step in merged.items() if step is not None})

    def with_options(self, changes: Mapping[str, Options]) -> "Method":
        """Return the method changed by the `[steps]` table of a recipe: `{"score": {"name": "ria", "alpha": 0.7}}`.

        Options without a `name`, or with that of the slot's step, change that step's options; in an update pipeline,
        those of every step that has them. Another name replaces the step, and `{"name": "none"}` empties the slot. A
        list replaces the step by an update pipeline.

        Raises:
            MethodError: Options are given for an empty slot, or a list for a slot that has one step.
        """
        steps = dict(self.steps)
        for slot, change in changes.items():
            current = current_step(slot, change)
            if not isinstance(current, Mapping):
                steps[slot] = _pipeline(slot, current)
                continue
            options = dict(current)
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
        """Check that the steps fit together, and look their functions up.

        Args:
            given_mask: Whether masks come from a file. Permute and select steps are left out then, and the score step
                too unless a remaining step takes scores.

        Raises:
            MethodError: The slots do not fit together, or a step or an option does not exist.
        """
        bound = {slot: step.bind(slot) for slot, step in self.steps.items()}
        if given_mask:
            remaining = {slot: step for slot, step in bound.items() if slot in _SLOTS_WITH_GIVEN_MASK}
            if "score" in bound and any("score" in step.data for step in remaining.values()):
                remaining = {"score": bound["score"], **remaining}
            return BoundMethod(self, remaining)
        for slot, required in _REQUIRED:
            if slot in bound and required not in bound:
                raise MethodError(f"steps.{slot}: a {slot} step needs a {required} step, and {self.name!r} has none")
        if "select" not in bound and "update" not in bound:
            raise MethodError(f"method {self.name!r} neither selects nor updates: give steps.select or steps.update")
        if "score" in bound and not any("score" in step.data for step in bound.values()):
            raise MethodError(
                f"steps.score: nothing in {self.name!r} uses the score of {bound['score'].name!r}; give steps.select "
                "(such as top), or leave the score out"
            )
        return BoundMethod(self, {slot: bound[slot] for slot in SLOTS if slot in bound})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every option spelled out, for records."""
        bound = self.bind()
        return {
            "name": self.name,
            "steps": {slot: step.to_dict() for slot, step in bound.steps.items()},
        }


@dataclass(frozen=True)
class BoundMethod:
    """A method whose functions have been looked up and whose options have been checked.

    Attributes:
        method: The method.
        steps: Its bound steps by slot, in the order they run.
    """

    method: Method
    steps: Mapping[str, BoundStep | BoundUpdatePipeline]

    @property
    def bound_steps(self) -> tuple[BoundStep, ...]:
        """All steps in the order they run, those of an update pipeline one by one."""
        return tuple(bound_step for step in self.steps.values() for bound_step in step.bound_steps)

    @property
    def statistics(self) -> frozenset[str]:
        """Activation statistics that any step takes; empty for methods that need no calibration data."""
        return frozenset().union(*(step.statistics for step in self.steps.values()))

    @property
    def compares(self) -> bool:
        """Whether a step compares activations of the pruned model with those of the dense one."""
        return any(STATISTICS[name].side == "dense" for name in self.statistics)

    @property
    def updates(self) -> bool:
        """Whether kept weights may change."""
        return not self.steps.keys().isdisjoint(("correct", "update"))

    @property
    def tune(self) -> BoundStep | None:
        """The step that tunes whole blocks; None if there is none."""
        return next((step for step in self.bound_steps if step.slot == "tune"), None)

    def check_pattern(self, pattern: AnyPattern, name: str) -> None:
        """Refuse a pattern that a step does not serve.

        Args:
            pattern: The pattern.
            name: The matrix, for error messages.

        Raises:
            PatternError: The pattern is unstructured and a step is defined for N:M only, or the reverse.
        """
        for step in self.bound_steps:
            if step.patterns and not isinstance(pattern, step.patterns):
                expected = "an N:M pattern such as 2:4" if step.patterns is Pattern else "a sparsity such as 0.5"
                raise PatternError(
                    f"{name}: {step.slot} step {step.name!r} of method {self.method.name!r} needs {expected}, "
                    f"not {pattern}"
                )


def _pipeline(slot: str, tables: Sequence[Mapping[str, Any]]) -> Step | UpdatePipeline:
    """Return the steps of a recipe's list."""
    steps = []
    for index, table in enumerate(tables):
        options = dict(table)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise MethodError(f"steps.{slot}[{index}]: a step of a pipeline needs its name, got {dict(table)}")
        steps.append(Step(name, options))
    if not steps:
        raise MethodError(f"steps.{slot}: expected the steps of a pipeline, got none; 'none' empties the slot")
    return pipeline_of(steps)
