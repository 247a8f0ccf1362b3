"""Method: a row of at most five steps, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eggs_ptp.core.pattern import AnyPattern, Pattern
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.chain import Chain, Links, chain_of
from eggs_ptp.method.step import SLOTS, Bound, Step

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # of one step, or of each link of a chain


@dataclass(frozen=True)
class Method:
    """Score, permute, select, refine, update: which ingredient fills each slot, and with which options.

    `update` may be a chain of steps (`Links`). A method needs `select` or `update`; `permute` and `select` need
    `score`; `refine` needs `select`.
    """

    name: str
    title: str
    source: str
    steps: Mapping[str, Step | Links] = field(default_factory=dict)

    def replace(self, **steps: Step | Links | None) -> "Method":
        """The same method with some slots refilled, or emptied by None."""
        merged = {**self.steps, **steps}
        return replace(self, steps={slot: step for slot, step in merged.items() if step is not None})

    def with_options(self, changes: Mapping[str, Options]) -> "Method":
        """Apply the `[steps]` table of a recipe: `{"score": {"name": "ria", "alpha": 0.7}}`.

        A slot's options are changed where no `name` is given, or where it is the name the slot already has;
        another name replaces the step. `{"name": "none"}` empties the slot. A list replaces the step by a chain;
        options for a chain change every link that has them.
        """
        steps = dict(self.steps)
        for slot, given in changes.items():
            if not isinstance(given, Mapping):
                steps[slot] = _chain(slot, given)
                continue
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
            left = {slot: step for slot, step in bound.items() if slot in ("correct", "refine", "update", "tune")}
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
            "steps": {slot: step.to_dict() for slot, step in bound.steps.items()},
        }


@dataclass(frozen=True)
class BoundMethod:
    """A method whose functions have been found and whose options have been checked."""

    method: Method
    steps: Mapping[str, Bound | Chain]

    @property
    def links(self) -> tuple[Bound, ...]:
        """Every function of the method in order, those of a chain one by one."""
        return tuple(link for step in self.steps.values() for link in step.links)

    @property
    def statistics(self) -> frozenset[str]:
        """Union of what the steps ask for; empty for methods that need no calibration data."""
        return frozenset().union(*(step.statistics for step in self.steps.values()))

    @property
    def compares(self) -> bool:
        """Whether a step compares what is pruned with what the dense model has there."""
        return any(STATISTICS[name].side == "dense" for name in self.statistics)

    @property
    def updates(self) -> bool:
        """Whether kept weights may become others than they were."""
        return not self.steps.keys().isdisjoint(("correct", "update"))

    @property
    def tune(self) -> Bound | None:
        """The step that tunes whole blocks."""
        return next((step for step in self.links if step.slot == "tune"), None)

    def check_pattern(self, pattern: AnyPattern, name: str) -> None:
        """Refuse a pattern that a step cannot serve.

        Raises:
            PatternError: unstructured for a step that is defined for N:M only, or the reverse; `name` says where.
        """
        for step in self.links:
            if step.patterns and not isinstance(pattern, step.patterns):
                expected = "an N:M pattern such as 2:4" if step.patterns is Pattern else "a sparsity such as 0.5"
                raise PatternError(
                    f"{name}: {step.slot} step {step.name!r} of method {self.method.name!r} needs {expected}, "
                    f"not {pattern}"
                )


def _chain(slot: str, given: Sequence[Mapping[str, Any]]) -> Step | Links:
    links = []
    for place, table in enumerate(given):
        options = dict(table)
        if not isinstance(name := options.pop("name", None), str):
            raise MethodError(f"steps.{slot}[{place}]: a step of a chain needs its name, came {dict(table)}")
        links.append(Step(name, options))
    if not links:
        raise MethodError(f"steps.{slot}: expected the steps of a chain, came none; 'none' empties the slot")
    return chain_of(links)
