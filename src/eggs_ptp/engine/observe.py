"""Statistics of the activations inside one block, collected while it runs."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eggs_ptp.core.stats import Moments
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.dense import Residual, Target
from eggs_ptp.engine.ranks import Ranks
from eggs_ptp.engine.routing import starved_on_everything
from eggs_ptp.engine.settled import Settled
from eggs_ptp.engine.through import Signal, through
from eggs_ptp.models.experts import Expert

_SAMPLED_TOKENS = 256
_ROWS = 512  # of a matrix at a time: differences stay in a cache


class _Seen(Signal):
    """Every activation that somebody asked for has passed: the rest of the block need not run."""


@dataclass(frozen=True)
class Want:
    """An activation to watch: the input or output of the linear at `path`, and the statistics asked for.

    `target` is what the dense model has there, where a statistic compares the two.
    """

    path: str
    width: int
    statistics: frozenset[str]
    side: Literal["input", "output"] = "input"
    target: Target | None = None


class Observation:
    """The sums over one activation, and evenly spaced tokens of it (for the output error of what is pruned)."""

    def __init__(self, want: Want, tokens: int, device: torch.device) -> None:
        # Without a target the inputs are compared with themselves: what a router sends is not what it sent before.
        dense_width = want.target.values.shape[-1] if want.target else want.width
        self._empty = functools.partial(Moments, want.width, want.statistics, device, dense_width=dense_width)
        self.moments = self._empty()
        self.leaves: list[Moments] = []  # that are not in `moments` yet, see `Ranks.add_up`
        self.of_inputs = not (want.target and want.target.writers)
        self.everything = False  # an expert that saw all tokens of its layer, as too few are sent to it
        self.device = device
        self._stride = max(1, tokens // _SAMPLED_TOKENS)
        self._parts: list[Tensor] = []
        self._leaf: Moments | None = None

    def close(self, *, leads: bool) -> None:
        """A leaf ends: its sums go to `moments`, or, where other ranks' come before, to `leaves` but for the first."""
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return
        if leads:
            self.moments.merge(leaf)
        elif self.moments.tokens:
            self.leaves.append(leaf)
        else:
            self.moments = leaf

    def add(self, activation: Tensor, dense: Tensor | None = None, counted: Tensor | None = None) -> None:
        """Take a batch of the activation, (..., width), and what the dense model has for it, (..., dense width).

        Of (windows, seqlen, width), `counted` says which tokens to take: bool (windows, seqlen).
        """
        if counted is None or activation.dim() != 3:
            self._add(activation, dense)
        elif bool((counted == counted[:1]).all()):
            self._add(activation[:, counted[0]], None if dense is None else dense[:, counted[0]])
        else:
            for window, here in enumerate(counted):
                self._add(activation[window][here], None if dense is None else dense[window][here])

    def _add(self, activation: Tensor, dense: Tensor | None) -> None:
        if self._leaf is None:
            with torch.inference_mode(False):
                self._leaf = self._empty()
        x = activation.reshape(-1, activation.shape[-1])
        first = -self._leaf.tokens % self._stride  # counted over the tokens of the leaf, whatever the batches
        self._parts.append(x[first :: self._stride].to(torch.float32, copy=True))  # a view would keep the batch alive
        self._leaf.add(activation, dense)

    @property
    def sample(self) -> Tensor:
        """About 256 tokens, (tokens, width) in float32."""
        if len(self._parts) != 1:
            empty = torch.empty(0, self.moments.width, device=self.device)
            self._parts = [torch.cat([empty, *self._parts])]
        return self._parts[0]

    @sample.setter
    def sample(self, tokens: Tensor) -> None:
        self._parts = [tokens]

    def output_error(self, dense: Tensor, pruned: Tensor, dtype: torch.dtype) -> float:
        """||X (W - W')^T||^2 / ||X W^T||^2 over the sampled tokens; 0 where both vanish.

        Outputs are computed in `dtype`, that of the activations, as the block computes them.
        """
        sample = self.sample.to(dtype)

        def energy(weight: Tensor) -> float:
            return float((sample @ weight.to(dtype).T).float().square().sum(dtype=torch.float64))

        lost = whole = 0.0
        for was, now in zip(dense.split(_ROWS), pruned.split(_ROWS), strict=True):
            lost, whole = lost + energy(was - now.float()), whole + energy(was)
        return lost / whole if whole > 0 else 0.0


def observe(
    block: nn.Module,
    hidden: Tensor,
    kwargs: Mapping[str, Any],
    wants: Mapping[str, Want],
    cut: Cut,
    *,
    onward: bool = False,
    settled: Settled | None = None,
    counted: Tensor | None = None,
) -> dict[str, Observation]:
    """Run the block over this rank's windows and collect what `wants` asks for, by activation name.

    With `onward` the block runs whole, and its outputs replace the hidden states. What is `settled` need not run.
    `counted` (windows, seqlen) says which tokens count; None: all.
    """
    tokens = cut.windows * hidden.shape[1]
    device = next(block.parameters()).device  # the hidden states may be elsewhere
    seen = {reads: Observation(want, tokens, device) for reads, want in wants.items()}
    watch = _Watch(wants, seen, counted, stop=not onward)
    settled = settled or Settled((), hidden.shape)
    device = next(block.parameters()).device
    starving = starved_on_everything(block, hidden, kwargs, cut, {want.path for want in wants.values()})
    with starving as starved, settled.on(block), watch.on(block), torch.inference_mode():
        for leaf in cut:
            for windows in leaf:
                part, watch.windows, settled.windows = hidden[windows], windows, windows
                watch.shape = part.shape[:2]
                with suppress(_Seen):
                    output = through(block, part.to(device), kwargs)
                    if onward:
                        part.copy_(output)
            for observation in seen.values():
                observation.close(leads=cut.ranks.leads)
    for name, want in wants.items():
        seen[name].everything = want.path.startswith(starved)
    return seen


def join(seen: Mapping[str, Observation], ranks: Ranks) -> None:
    """Make what this rank has seen of its windows what all have seen of all: sums, and the tokens kept."""
    tokens = torch.tensor([sum(part.tokens for part in (o.moments, *o.leaves)) for o in seen.values()])
    ranks.add_up((observation.moments, observation.leaves) for observation in seen.values())
    samples = ranks.gather([observation.sample for observation in seen.values()])
    for observation, count, sample in zip(seen.values(), ranks.total(tokens).tolist(), samples, strict=True):
        observation.moments.tokens, observation.sample, observation.leaves = count, sample, []


class _Watch:
    """Hooks on the activations of a block while it runs."""

    def __init__(
        self, wants: Mapping[str, Want], seen: Mapping[str, Observation], counted: Tensor | None, *, stop: bool
    ) -> None:
        self._wants, self._seen, self._counted, self._stop = wants, seen, counted, stop
        self._waiting: set[str] = set()
        self._residual = Residual()
        self.windows = slice(0)  # those that are running
        self.shape = torch.Size()  # of them: how many, and their tokens

    @contextmanager
    def on(self, block: nn.Module) -> Iterator[None]:
        """Watch while this block runs."""
        self._block = block
        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(self._start).remove)
            targets = (want.target for want in self._wants.values() if want.target)
            if writers := {path for target in targets for path in target.writers}:
                stack.enter_context(self._residual.of(block, writers))
            for name, want in self._wants.items():
                linear = block.get_submodule(want.path)
                if want.side == "input":
                    handle = linear.register_forward_pre_hook(lambda _m, args, name=name: self._take(name, args[0]))
                else:
                    handle = linear.register_forward_hook(lambda _m, _args, out, name=name: self._take(name, out))
                stack.callback(handle.remove)
            yield

    def _start(self, _module: nn.Module, _args: Any) -> None:
        self._waiting.update(self._wants)

    def _take(self, name: str, activation: Tensor) -> None:
        if activation.dim() == 2 and len(activation) == self.shape.numel():  # all windows, flattened into one
            activation = activation.view(*self.shape, -1)
        target, dense = self._wants[name].target, activation
        if target is not None:
            dense = target.values[self.windows].to(activation.device)
            dense = dense - self._residual.now if target.writers else dense
        counted = None if self._counted is None else self._counted[self.windows]
        expert = self._block.get_submodule(self._wants[name].path.rpartition(".")[0])
        if counted is not None and activation.dim() == 2 and isinstance(expert, Expert):
            activation = dense = activation[counted.flatten()[expert.tokens]]
        self._seen[name].add(activation, dense, counted)
        self._waiting.discard(name)
        if self._stop and not self._waiting:
            raise _Seen
