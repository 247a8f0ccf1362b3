"""Links: update steps one after the other, each going on from the weights and the mask of the one before."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eggs_ptp.core.noted import Fact, Noted
from eggs_ptp.errors import MethodError
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import Bound, Step

CHAINED = "update"  # the slot whose steps can be chained: only these hand on weights beside a mask


@dataclass(frozen=True)
class Links:
    """Several update steps in the place of one."""

    links: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The steps' names, joined as a method's would be."""
        return "+".join(link.name for link in self.links)

    @property
    def options(self) -> Mapping[str, Any]:
        """Options are the links'."""
        return {}

    def with_options(self, **options: Any) -> "Links":
        """The same links; an option is changed in every link that has it.

        Raises:
            MethodError: no link has it.
        """
        has = [link.bind(CHAINED).options.keys() for link in self.links]
        known = {name for names in has for name in names}
        for key in options:
            if key not in known:
                raise MethodError(
                    f"steps.{CHAINED}.{key}: no step of the chain {self.name!r} has an option {key!r}"
                    f"{nearest(key, known)}"
                )
        return Links(
            tuple(
                link.with_options(**{key: value for key, value in options.items() if key in names})
                for link, names in zip(self.links, has, strict=True)
            )
        )

    def bind(self, slot: str) -> "Chain":
        """Bind every link.

        Raises:
            MethodError: a link cannot be bound, or the slot is none for chains.
        """
        if slot != CHAINED:
            raise MethodError(f"steps.{slot}: expected one step, came {self.name!r}; only {CHAINED} has chains")
        return Chain(slot, tuple(link.bind(slot, f"steps.{slot}[{i}]") for i, link in enumerate(self.links)))


@dataclass(frozen=True)
class Chain:
    """Links with their functions; what can be asked of one bound step can be asked of the chain."""

    slot: str
    links: tuple[Bound, ...]

    @property
    def name(self) -> str:
        """The steps' names, joined as a method's would be."""
        return "+".join(link.name for link in self.links)

    @property
    def data(self) -> tuple[str, ...]:
        """What any link wants."""
        return tuple(dict.fromkeys(name for link in self.links for name in link.data))

    @property
    def statistics(self) -> frozenset[str]:
        """The activation statistics that any link wants."""
        return frozenset().union(*(link.statistics for link in self.links))

    @property
    def options(self) -> Mapping[str, Any]:
        """Options are the links'."""
        return {}

    @property
    def patterns(self) -> type | None:
        """The kind of pattern that the first particular link is annotated for."""
        return next((link.patterns for link in self.links if link.patterns), None)

    def __call__(self, read: Callable[[str], Any]) -> Any:
        """Run the links: each sees the dense weight, and as `start` and `mask` what the link before returned."""
        read = functools.cache(read)  # a Gram matrix takes long to put into an order
        given: dict[str, Any] = {}
        facts: dict[str, Fact] = {}
        for link in self.links:
            result = link(read, **given)
            if isinstance(result, Noted):
                facts.update(result.facts)
                result = result.value
            given["start"], given["mask"] = result
        return Noted((given["start"], given["mask"]), facts)

    def to_dict(self) -> Any:
        """Plain data, a list of the links, with every option spelled out."""
        return [link.to_dict() for link in self.links]


def chain_of(steps: Sequence[Step]) -> Step | Links:
    """One step is itself, several are links."""
    return steps[0] if len(steps) == 1 else Links(tuple(steps))


def joined(before: Step | Links | None, after: Step) -> Step | Links:
    """`after` as an update step joined by name to what is there.

    A step that names `start` goes on from weights that another has updated, so it is appended, unless the chain ends
    in a step of that name already. Any other begins anew from the dense weights and takes the place of what is there.
    """
    if before is None or "start" not in after.bind(CHAINED).data:
        return after
    links = before.links if isinstance(before, Links) else (before,)
    kept = links[:-1] if links[-1].name == after.name else links
    return chain_of((*kept, after))
