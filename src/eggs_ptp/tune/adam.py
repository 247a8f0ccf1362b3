"""Block reconstruction: Adam on the kept weights of a decoder block, towards the output of the dense block."""

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

from eggs_ptp.core.step_result import Diagnostic
from eggs_ptp.errors import CalibrationError, MethodError, NumericsError

# Tokens, or one window, of a forward and backward pass: the memory for activations does not grow with `batch`.
_TOKENS_PER_PASS = 4096
_TOKENS_PER_LOGITS = 512  # tokens whose logits are in memory at a time
_BETAS = (0.9, 0.95)
_EPSILON = 1e-12  # gradients of a relative loss are small; those of rows that no token reaches are zero
_TINY = torch.finfo(torch.float32).tiny


class TuneResult(NamedTuple):
    """Result of a tune step.

    Attributes:
        tensors: Changed tensors by their names in the block, float32; empty if the step was rolled back.
        diagnostics: What the step measured.
    """

    tensors: dict[str, Tensor]
    diagnostics: dict[str, Diagnostic]


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
) -> TuneResult:
    """Train the kept weights of a block so that its output gets closer to that of the dense block.

    Minimises the mean over tokens t of ||f(x)_t - y_t||^2 / ||y_t||^2 over the kept weights of the block f, with
    x = `inputs` and y = `target`. As x comes from the pruned model and y from the dense one, the block also compensates
    for the errors of the blocks before it. For the last block, `divergence` times the mean of KL(g(y_t) || g(f(x)_t)),
    in nats, is added, where g is softmax after `logits`.

    Adam (0.9, 0.95) runs in float32; its rate falls along a cosine from `learning_rate` times the root mean square of a
    tensor's kept weights to 0. Trained are the kept weights and the biases of the pruned linears and, with `gains`, all
    other vectors of the block; pruned weights remain +0.0. Part of the windows is held out, and the weights of least
    held-out loss are returned, or none if no check is better than the start. The block itself is not changed: it runs
    in its own dtype with other weights in place of its own.

    Besides the block this takes 24 bytes per weight, kept or pruned, and the activations of 4096 tokens or one window;
    for the last block also `logits`, and about five times the logits of 512 tokens.

    Args:
        block: The pruned decoder block.
        masks: Keep masks of the pruned linears, bool (out, in), by module path in the block.
        inputs: Inputs of the block in the pruned model, (windows, seqlen, hidden).
        target: Outputs of the dense block in the dense model, (windows, seqlen, hidden).
        call: Runs the block: (windows, seqlen, hidden) to the same shape.
        logits: For the last block, all that follows the blocks: (tokens, hidden) to (tokens, vocabulary); None for the
            others.
        generator: Source of randomness for the held-out windows and the order of the others.
        epochs: Passes over the windows that are not held out, above 0; 8 by default.
        learning_rate: Initial rate, relative to the root mean square of a tensor's kept weights, above 0; 0.02 by
            default.
        batch: Windows per step, at least 1; 4 by default.
        holdout: Share of the windows that is held out, between 0 and 1, at least one window; 0.125 by default.
        checks: Number of times that the held-out loss is measured, at least 1; 8 by default.
        divergence: Weight of the Kullback-Leibler divergence for the last block, at least 0; 1 by default. 0 leaves it
            out.
        gains: Also train vectors that are not biases of pruned linears, such as the gains of norms; off by default.

    Returns:
        Changed tensors, with the diagnostics loss_before and loss_after (held-out), steps, best_step, rolled_back (0 or
        1) and seconds.

    Raises:
        MethodError: A mask fits no linear of the block.
        CalibrationError: There are fewer than two windows.
        NumericsError: The loss is NaN or infinite.

    Source:
        EBFT, arXiv:2402.12419, block-wise reconstruction under fixed masks.

    Differs:
        Relative error, towards the dense model's residual stream, and its predictions at the end; relative rates; the
        best weights by held-out loss.
    """
    start = time.perf_counter()
    held_out, train = _split_windows(len(inputs), holdout, generator)
    with torch.inference_mode(False):  # tensors made in inference mode could not be trained
        loss = _ReconstructionLoss(inputs, target, logits if divergence else None, divergence)
        optimiser = _Optimiser(_BlockCall(block, call), _trained_tensors(block, masks, gains), loss, learning_rate)
        batches = list(_batches(train, epochs, batch, generator))
        tensors, diagnostics = _train(optimiser, batches, held_out, checks)
    seconds = time.perf_counter() - start
    return TuneResult(tensors, {**diagnostics, "rolled_back": int(not tensors), "seconds": seconds})


def _train(
    optimiser: "_Optimiser", batches: Sequence[Tensor], held_out: Tensor, checks: int
) -> tuple[dict[str, Tensor], dict[str, Diagnostic]]:
    """Take all steps; return the weights of least held-out loss, if less than at the start, and the diagnostics."""
    loss_before = best_loss = optimiser.loss(held_out)
    check_steps = {round((check + 1) * len(batches) / checks) for check in range(checks)}
    best: dict[str, Tensor] = {}
    best_step = 0
    for step, windows in enumerate(batches, 1):
        optimiser.step(windows, 0.5 + 0.5 * math.cos(math.pi * (step - 1) / len(batches)))
        if step in check_steps and (loss := optimiser.loss(held_out)) < best_loss:
            best_loss = loss
            best_step = step
            best = optimiser.copy_weights()
    diagnostics: dict[str, Diagnostic] = {
        "loss_before": loss_before,
        "loss_after": best_loss,
        "steps": len(batches),
        "best_step": best_step,
    }
    return best, diagnostics


def _split_windows(windows: int, holdout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices of the windows that are held out, and of the others."""
    if windows < 2:
        raise CalibrationError(f"steps.tune: adam holds windows out, so it needs at least 2; got {windows}")
    shuffled = torch.randperm(windows, generator=generator, device=generator.device)
    count = min(max(1, round(holdout * windows)), windows - 1)
    return shuffled[:count], shuffled[count:]


def _batches(train: Tensor, epochs: float, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the windows of each step: every window once before any is used again."""
    shuffles = (torch.randperm(len(train), generator=generator, device=train.device) for _ in range(math.ceil(epochs)))
    windows = torch.cat([train[shuffle] for shuffle in shuffles])[: max(1, round(epochs * len(train)))]
    yield from windows.split(batch)


class _BlockCall(nn.Module):
    """A block as `call` runs it, in a form that `functional_call` can run with other weights."""

    def __init__(self, block: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = block
        self.__dict__["call"] = call

    def forward(self, hidden: Tensor) -> Tensor:
        return self.__dict__["call"](hidden)  # type: ignore[no-any-return]


class _ReconstructionLoss:
    """The loss that is minimised, on any of the windows."""

    def __init__(
        self, inputs: Tensor, target: Tensor, logits: Callable[[Tensor], Tensor] | None, divergence: float
    ) -> None:
        self._inputs = inputs
        self._target = target
        self._logits = logits
        self._divergence = divergence
        self.windows_per_pass = max(1, _TOKENS_PER_PASS // inputs.shape[1])

    def __call__(self, function: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """Return the sum over these windows of their mean loss per token."""
        inputs = self._inputs[windows.to(self._inputs.device)]
        target = self._target[windows.to(self._target.device)]
        output = function(inputs)
        target = target.to(output.device)
        energy = target.float().square().sum(-1).clamp_min(_TINY)
        error = (output.float() - target.float()).square().sum(-1) / energy
        if self._logits is not None:
            output_parts = output.flatten(0, 1).split(_TOKENS_PER_LOGITS)
            target_parts = target.flatten(0, 1).split(_TOKENS_PER_LOGITS)
            # Recomputed in the backward pass, as logits are the largest tensors here.
            divergences = [
                checkpoint(_kl_divergence, self._logits, *pair, use_reentrant=False)
                for pair in zip(output_parts, target_parts, strict=True)
            ]
            error = error + self._divergence * torch.cat(divergences).view_as(error)
        return error.mean(1).sum()


def _kl_divergence(logits: Callable[[Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || output) of each token."""
    log_q = logits(output).float().log_softmax(-1)
    log_p = logits(target).float().log_softmax(-1)
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


class _Optimiser:
    """Trained weights in float32, with Adam's moments."""

    def __init__(
        self,
        block_call: _BlockCall,
        masks: Mapping[str, Tensor | None],
        loss: _ReconstructionLoss,
        learning_rate: float,
    ) -> None:
        self._block_call = block_call
        self._masks = masks
        self._loss = loss
        parameters = dict(block_call.block.named_parameters())
        self._dtypes = {name: parameters[name].dtype for name in masks}
        self._weights: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}
        for name, mask in masks.items():
            weight = parameters[name].detach().float()
            # Not a product with the mask: that would leave -0.0 where a negative weight is pruned.
            weight = weight.clone() if mask is None else torch.where(mask, weight, 0.0)
            count = weight.numel() if mask is None else int(mask.sum())
            self._rates[name] = learning_rate * math.sqrt(float(weight.square().sum()) / max(1, count))
            self._weights[name] = weight.requires_grad_()
        self._moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in self._weights.items()}
        self._steps = 0

    def loss(self, windows: Tensor) -> float:
        """Return the mean loss over the tokens of these windows."""
        with torch.no_grad():
            passes = windows.split(self._loss.windows_per_pass)
            return self._check_finite(sum(float(self._summed_loss(part)) for part in passes) / len(windows))

    def step(self, windows: Tensor, rate: float) -> None:
        """Take one step of Adam on these windows, at this share of the learning rate."""
        weights = list(self._weights.values())
        gradients = [torch.zeros_like(weight) for weight in weights]
        total = 0.0
        with torch.enable_grad():
            for part in windows.split(self._loss.windows_per_pass):
                loss = self._summed_loss(part) / len(windows)
                total += loss.item()
                part_gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
                for gradient, part_gradient in zip(gradients, part_gradients, strict=True):
                    gradient += part_gradient
        self._check_finite(total)
        self._steps += 1
        for name, gradient in zip(self._weights, gradients, strict=True):
            self._update(name, gradient, rate)

    @torch.no_grad()
    def _update(self, name: str, gradient: Tensor, rate: float) -> None:
        """Update one tensor and its moments."""
        if (mask := self._masks[name]) is not None:
            gradient *= mask
        first, second = self._moments[name]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        scale = (second / (1 - _BETAS[1] ** self._steps)).sqrt_().add_(_EPSILON)
        step = rate * self._rates[name] / (1 - _BETAS[0] ** self._steps)
        self._weights[name].addcdiv_(first, scale, value=-step)

    def copy_weights(self) -> dict[str, Tensor]:
        """Return a copy of the current weights."""
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def _summed_loss(self, windows: Tensor) -> Tensor:
        """Return the sum over these windows of their mean loss per token, with the current weights."""
        weights = {f"block.{name}": weight.to(self._dtypes[name]) for name, weight in self._weights.items()}
        return self._loss(lambda hidden: functional_call(self._block_call, weights, (hidden,)), windows)

    def _check_finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NumericsError(
                f"the loss of its reconstruction is NaN or infinite after {self._steps} steps; lower "
                "steps.tune.learning_rate, or try --dtype float32"
            )
        return loss


def _trained_tensors(block: nn.Module, masks: Mapping[str, Tensor], gains: bool) -> dict[str, Tensor | None]:
    """Return the trained tensors by name: the pruned linears' weights with their masks, and vectors with None."""
    parameters = dict(block.named_parameters())
    trained: dict[str, Tensor | None] = {}
    for path, mask in masks.items():
        weight = parameters.get(f"{path}.weight")
        if weight is None or weight.shape != mask.shape:
            actual = "no such linear" if weight is None else f"a weight of shape {list(weight.shape)}"
            raise MethodError(f"{path}: a mask of shape {list(mask.shape)} was given, but the block has {actual}")
        trained[f"{path}.weight"] = mask
    biases = {f"{path}.bias" for path in masks}
    vectors = [name for name, tensor in parameters.items() if tensor.dim() == 1 and (gains or name in biases)]
    return {**trained, **dict.fromkeys(vectors)}
