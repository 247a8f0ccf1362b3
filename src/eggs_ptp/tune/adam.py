"""Block reconstruction: the kept weights of a block descend together towards what the dense block gives."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from eggs_ptp.core.noted import Fact
from eggs_ptp.errors import CalibrationError, MethodError, NumericsError

_AT_ONCE = 4096  # tokens of one forward and backward pass, or a window: what activations take does not grow with batch
_LOGITS_AT_ONCE = 512  # tokens whose logits are there at once
_BETAS = 0.9, 0.95
_EPSILON = 1e-12  # gradients of a relative loss are small; rows that are never reached have none
_TINY = torch.finfo(torch.float32).tiny


class Tuned(NamedTuple):
    """The tensors that have changed, by their names in the block, in float32 (none if rolled back), and the facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Fact]


def adam(
    block: nn.Module,
    masks: Mapping[str, Tensor],
    inputs: Tensor,
    target: Tensor,
    call: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator,
    *,
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0,
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02,
    batch: Annotated[int, Field(ge=1)] = 4,
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.125,
    checks: Annotated[int, Field(ge=1)] = 8,
    divergence: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
    gains: bool = False,
) -> Tuned:
    """Minimise the mean over tokens t of ||f(x)_t - y_t||^2 / ||y_t||^2 over the kept weights of the block f.

    x = `inputs` is what reaches the block behind the pruned ones, y = `target` what the dense block makes of what
    reaches it in the dense model, both (windows, seqlen, hidden): so it also makes up for what the blocks before have
    lost. `call` runs the block. For the last block `divergence` times the mean of KL(g(y_t) || g(f(x)_t)), nats, is
    added, g being softmax after `logits`, (tokens, hidden) to (tokens, vocabulary): all that follows the blocks.

    Adam (0.9, 0.95) in float32, on `batch` windows a step, for `epochs` passes, its rate falling along a cosine from
    `learning_rate` times the root mean square of a tensor's kept weights to 0. `masks` (True = keep) are of the pruned
    linears, by module path; what is pruned stays +0.0. Their biases are trained too, other vectors, such as the gains
    of norms, with `gains`. A share `holdout` of the windows, at least one, drawn by `generator`, is held out and looked
    at `checks` times: what does best on it is returned, and nothing where nothing beats what came in. The facts are the
    loss there before and after, `steps`, `best_step`, `rolled_back` (0 or 1), `seconds`. The block is only read: it
    runs in its own type with other weights in place of its own.

    Beside the block it takes 24 bytes for each weight, kept or pruned, and the activations of 4096 tokens or one
    window; for the last block `logits` and those of 512 tokens some five times.

    Source: EBFT, arXiv:2402.12419, block-wise reconstruction under fixed masks.
    Differs: relative error, to the dense model's stream, and its predictions at the end; relative rates; held-out best.

    Raises:
        MethodError: a mask that fits no linear of the block.
        CalibrationError: fewer than two windows.
        NumericsError: the loss is NaN or infinite.
    """
    start = time.perf_counter()
    held, train = _parted(len(inputs), holdout, generator)
    with torch.inference_mode(False):  # tensors made inside it could not be trained
        error = _Error(inputs, target, logits if divergence else None, divergence)
        descent = _Descent(_Called(block, call), _masks_by_tensor(block, masks, gains), error, learning_rate)
        tensors, facts = _best(descent, list(_batches(train, epochs, batch, generator)), held, checks)
    return Tuned(tensors, {**facts, "rolled_back": int(not tensors), "seconds": time.perf_counter() - start})


def _best(
    descent: "_Descent", batches: Sequence[Tensor], held: Tensor, checks: int
) -> tuple[dict[str, Tensor], dict[str, Fact]]:
    """Go all the way down; the weights that did best on the held-out windows, if better than the first."""
    before = best = descent.loss(held)
    looks = {round((look + 1) * len(batches) / checks) for look in range(checks)}
    kept: dict[str, Tensor] = {}
    best_step = 0
    for step, windows in enumerate(batches, 1):
        descent.step(windows, 0.5 + 0.5 * math.cos(math.pi * (step - 1) / len(batches)))
        if step in looks and (loss := descent.loss(held)) < best:
            best, best_step, kept = loss, step, descent.copy()
    return kept, {"loss_before": before, "loss_after": best, "steps": len(batches), "best_step": best_step}


def _parted(windows: int, holdout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the windows that are held out, and of the others."""
    if windows < 2:
        raise CalibrationError(f"steps.tune: adam holds windows out, so it needs at least 2; came {windows}")
    order = torch.randperm(windows, generator=generator, device=generator.device)
    count = min(max(1, round(holdout * windows)), windows - 1)
    return order[:count], order[count:]


def _batches(train: Tensor, epochs: float, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every window once before any comes again."""
    draws = (torch.randperm(len(train), generator=generator, device=train.device) for _ in range(math.ceil(epochs)))
    order = torch.cat([train[draw] for draw in draws])[: max(1, round(epochs * len(train)))]
    yield from order.split(batch)


class _Called(nn.Module):
    """A block as `call` runs it, in the form that `functional_call` can give other weights to."""

    def __init__(self, block: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = block
        self.__dict__["call"] = call

    def forward(self, hidden: Tensor) -> Tensor:
        return self.__dict__["call"](hidden)  # type: ignore[no-any-return]


class _Error:
    """What is to be made small, on any of the windows."""

    def __init__(
        self, inputs: Tensor, target: Tensor, logits: Callable[[Tensor], Tensor] | None, divergence: float
    ) -> None:
        self._inputs, self._target, self._logits, self._divergence = inputs, target, logits, divergence
        self.at_once = max(1, _AT_ONCE // inputs.shape[1])

    def __call__(self, function: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """Error of these windows, each a mean over its tokens, added up."""
        inputs, target = (whole[windows.to(whole.device)] for whole in (self._inputs, self._target))
        output = function(inputs)
        target = target.to(output.device)
        size = target.float().square().sum(-1).clamp_min(_TINY)
        error = (output.float() - target.float()).square().sum(-1) / size
        if self._logits is not None:
            pairs = zip(*(hidden.flatten(0, 1).split(_LOGITS_AT_ONCE) for hidden in (output, target)), strict=True)
            # Computed once more on the way back: logits are the largest thing there is.
            parts = [checkpoint(_divergence, self._logits, *pair, use_reentrant=False) for pair in pairs]
            error = error + self._divergence * torch.cat(parts).view_as(error)
        return error.mean(1).sum()


def _divergence(logits: Callable[[Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """KL(target || output) of each token."""
    found, wanted = (logits(hidden).float().log_softmax(-1) for hidden in (output, target))
    return kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


class _Descent:
    """Weights on their way down, with Adam's moments."""

    def __init__(
        self, called: _Called, masks: Mapping[str, Tensor | None], error: _Error, learning_rate: float
    ) -> None:
        self._called, self._masks, self._error = called, masks, error
        parameters = dict(called.block.named_parameters())
        self._types = {name: parameters[name].dtype for name in masks}
        self._weights: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}
        for name, mask in masks.items():
            weight = parameters[name].detach().float()
            # Never a product: that would leave -0.0 where a negative weight is pruned.
            weight = weight.clone() if mask is None else torch.where(mask, weight, 0.0)
            size = weight.numel() if mask is None else int(mask.sum())
            self._rates[name] = learning_rate * math.sqrt(float(weight.square().sum()) / max(1, size))
            self._weights[name] = weight.requires_grad_()
        self._moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in self._weights.items()}
        self._steps = 0

    def loss(self, windows: Tensor) -> float:
        """Mean over the tokens of these windows."""
        with torch.no_grad():
            return self._finite(
                sum(float(self._summed(part)) for part in windows.split(self._error.at_once)) / len(windows)
            )

    def step(self, windows: Tensor, rate: float) -> None:
        """One step of Adam on these windows, at this share of the learning rate."""
        names, weights = list(self._weights), list(self._weights.values())
        gradients, total = [torch.zeros_like(weight) for weight in weights], 0.0
        with torch.enable_grad():
            for part in windows.split(self._error.at_once):
                loss = self._summed(part) / len(windows)
                total += loss.item()
                for gradient, of_part in zip(
                    gradients, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True
                ):
                    gradient += of_part
        self._finite(total)
        self._steps += 1
        for name, gradient in zip(names, gradients, strict=True):
            self._move(name, gradient, rate)

    @torch.no_grad()
    def _move(self, name: str, gradient: Tensor, rate: float) -> None:
        if (mask := self._masks[name]) is not None:
            gradient *= mask
        first, second = self._moments[name]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        scale = (second / (1 - _BETAS[1] ** self._steps)).sqrt_().add_(_EPSILON)
        step = rate * self._rates[name] / (1 - _BETAS[0] ** self._steps)
        self._weights[name].addcdiv_(first, scale, value=-step)

    def copy(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def _summed(self, windows: Tensor) -> Tensor:
        weights = {f"block.{name}": weight.to(self._types[name]) for name, weight in self._weights.items()}
        return self._error(lambda hidden: functional_call(self._called, weights, (hidden,)), windows)

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NumericsError(
                f"the loss of its reconstruction is NaN or infinite after {self._steps} steps; lower "
                "steps.tune.learning_rate, or try --dtype float32"
            )
        return loss


def _masks_by_tensor(block: nn.Module, masks: Mapping[str, Tensor], gains: bool) -> dict[str, Tensor | None]:
    """What is trained, by name: the pruned linears' weights with their masks, and vectors without one."""
    parameters = dict(block.named_parameters())
    found: dict[str, Tensor | None] = {}
    for path, mask in masks.items():
        weight = parameters.get(f"{path}.weight")
        if weight is None or weight.shape != mask.shape:
            came = "no such linear" if weight is None else f"a weight of shape {list(weight.shape)}"
            raise MethodError(f"{path}: a mask of shape {list(mask.shape)} was given, but the block has {came}")
        found[f"{path}.weight"] = mask
    biases = {f"{path}.bias" for path in masks}
    vectors = [name for name, tensor in parameters.items() if tensor.dim() == 1 and (gains or name in biases)]
    return {**found, **dict.fromkeys(vectors)}
