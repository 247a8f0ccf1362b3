"""Update pipelines: several update steps in a row, each starting from the weights and mask of the previous one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eggs_ptp.core.step_result import Diagnostic, StepResult
from eggs_ptp.errors import MethodError
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import BoundStep, Step

# The only slot whose steps form pipelines: an update step returns both a weight and a mask for the next one.
PIPELINE_SLOT = "update"


@dataclass(frozen=True)
class UpdatePipeline:
    """Several update steps where a method has one, in the order they run."""

    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The steps' names joined by `+`, as in the name of a method."""
        return "+".join(step.name for step in self.steps)

    @property
    def options(self) -> Mapping[str, Any]:
        """Empty: options belong to the steps."""
        return {}

    def with_options(self, **options: Any) -> "UpdatePipeline":
        """Return the same pipeline with options changed in every step that has them.

        Raises:
            MethodError: No step has the option.
        """
        options_by_step = [step.bind(PIPELINE_SLOT).options.keys() for step in self.steps]
        known = {option for step_options in options_by_step for option in step_options}
        for option in options:
            if option not in known:
                raise MethodError(
                    f"steps.{PIPELINE_SLOT}.{option}: no step of the pipeline {self.name!r} has an option {option!r}"
                    f"{nearest(option, known)}"
                )
        changed = []
        for step, step_options in zip(self.steps, options_by_step, strict=True):
            own = {option: value for option, value in options.items() if option in step_options}
            changed.append(step.with_options(**own))
        return UpdatePipeline(tuple(changed))

    def bind(self, slot: str) -> "BoundUpdatePipeline":
        """Bind every step.

        Raises:
            MethodError: A step cannot be bound, or the slot is not `update`.
        """
        if slot != PIPELINE_SLOT:
            raise MethodError(
                f"steps.{slot}: expected one step, got {self.name!r}; only {PIPELINE_SLOT} may have several"
            )
        return BoundUpdatePipeline(
            slot, tuple(step.bind(slot, f"steps.{slot}[{index}]") for index, step in enumerate(self.steps))
        )


@dataclass(frozen=True)
class BoundUpdatePipeline:
    """An update pipeline with its functions; it has the interface of a `BoundStep`."""

    slot: str
    bound_steps: tuple[BoundStep, ...]

    @property
    def name(self) -> str:
        """The steps' names joined by `+`, as in the name of a method."""
        return "+".join(step.name for step in self.bound_steps)

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data that any of the steps takes."""
        return tuple(dict.fromkeys(name for step in self.bound_steps for name in step.data))

    @property
    def statistics(self) -> frozenset[str]:
        """Names of the activation statistics that any of the steps takes."""
        return frozenset().union(*(step.statistics for step in self.bound_steps))

    @property
    def options(self) -> Mapping[str, Any]:
        """Empty: options belong to the steps."""
        return {}

    @property
    def patterns(self) -> type | None:
        """The type of pattern that the first step with an annotated `pattern` serves; None if no step has one."""
        return next((step.patterns for step in self.bound_steps if step.patterns), None)

    def __call__(self, read: Callable[[str], Any]) -> Any:
        """Run the steps; each gets the dense weight, and the previous step's weight and mask as `start` and `mask`.

        Args:
            read: Returns a piece of data by its name.

        Returns:
            The last step's weight and mask, with the diagnostics of all steps.
        """
        read = functools.cache(read)  # permuting a Gram matrix takes long
        previous: dict[str, Any] = {}
        diagnostics: dict[str, Diagnostic] = {}
        for step in self.bound_steps:
            result = step(read, **previous)
            if isinstance(result, StepResult):
                diagnostics.update(result.diagnostics)
                result = result.value
            previous["start"], previous["mask"] = result
        return StepResult((previous["start"], previous["mask"]), diagnostics)

    def to_dict(self) -> Any:
        """Return plain data: a list of the steps with every option spelled out."""
        return [step.to_dict() for step in self.bound_steps]


def pipeline_of(steps: Sequence[Step]) -> Step | UpdatePipeline:
    """Return the only step of a sequence, or a pipeline of several."""
    return steps[0] if len(steps) == 1 else UpdatePipeline(tuple(steps))


def joined(before: Step | UpdatePipeline | None, after: Step) -> Step | UpdatePipeline:
    """Return the update steps of a method whose name is extended by an update step, as in `sparsegpt+pcg`.

    A step that takes `start` continues from weights that another step has updated: it is appended, or replaces a last
    step of the same name. Any other step starts from the dense weights and replaces all that were there.

    Args:
        before: The method's update step or pipeline; None if it has none.
        after: The step that its name is extended by.
    """
    if before is None or "start" not in after.bind(PIPELINE_SLOT).data:
        return after
    steps = before.steps if isinstance(before, UpdatePipeline) else (before,)
    remaining = steps[:-1] if steps[-1].name == after.name else steps
    return pipeline_of((*remaining, after))
