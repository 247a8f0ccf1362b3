"""Fidelity: how closely a model's outputs and hidden states follow those of another, without labels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from eggs_ptp.engine.blocks.run_block import hidden_of
from eggs_ptp.errors import ModelError
from eggs_ptp.evaluation.estimate import Estimate, estimate
from eggs_ptp.evaluation.logits import LogitChunks, logits_in_chunks
from eggs_ptp.evaluation.perplexity import BATCH_TOKENS, Progress, check_losses, evaluation_mode
from eggs_ptp.evaluation.window import IGNORED, Batch, EvaluationWindows, padded_batches
from eggs_ptp.models.load import family_in


class ComparedModel(NamedTuple):
    """A model, and the permutation that was folded into its residual stream.

    Channel i of its hidden states is channel `permutation[i]` of the unpruned model's; None if nothing was folded.
    """

    model: Any
    permutation: Tensor | None = None


@dataclass(frozen=True)
class Fidelity:
    """How closely a model follows a reference; all numbers are means over the scored positions.

    Attributes:
        kl: KL(reference || model) = sum_v p(v) (log p(v) - log q(v)) in nats, with p the next-token probabilities of
            the reference and q those of the model.
        agreement: Share of the positions at which both have the same most likely token.
        hidden: For each block |h' - h| / |h| of its output, with h the hidden state of the reference at a position
            and h' the model's, both in the channel order of the unpruned model.
    """

    kl: Estimate
    agreement: Estimate
    hidden: tuple[Estimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for records."""
        hidden = [block_error.to_dict() for block_error in self.hidden]
        return {"kl": self.kl.to_dict(), "agreement": self.agreement.to_dict(), "hidden": hidden}


@dataclass(frozen=True, eq=False)
class FidelityResult:
    """A fidelity, and the losses of both models on the same windows, float64 (windows,), sums in nats."""

    fidelity: Fidelity
    losses: Tensor
    reference_losses: Tensor


def measure_fidelity(
    compared: ComparedModel,
    reference: ComparedModel,
    windows: EvaluationWindows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> FidelityResult:
    """Run two models over the same windows, batch by batch, and measure how closely the first follows the second.

    Probabilities are in float32, sums over a window in float64; standard errors are over windows, see `estimate`.

    Args:
        compared: The model to measure.
        reference: The model to compare it with.
        windows: The windows.
        batch_tokens: Most tokens in a forward pass.
        progress: Called after each batch.

    Raises:
        ModelError: The models differ in vocabulary, number of blocks or width, or their blocks cannot be found.
        NumericsError: The loss of a window is NaN or infinite.
    """
    _check_shapes(compared.model, reference.model)
    blocks = compared.model.config.num_hidden_layers
    sums = torch.zeros(4 + blocks, len(windows.sequences), dtype=torch.float64)
    done = 0
    with evaluation_mode(compared.model, reference.model):
        for batch in padded_batches(windows, batch_tokens):
            rows = (batch.targets != IGNORED).flatten().nonzero().flatten()
            chunks, hidden = _run(compared, batch, rows)
            reference_chunks, reference_hidden = _run(reference, batch, rows)
            hidden_errors = _hidden_errors(hidden, reference_hidden, rows)
            targets = batch.targets.flatten()
            pairs = zip(chunks, reference_chunks, strict=True)
            logit_measures = [
                _compare_logits(logits, reference_logits, targets[chunk])
                for (chunk, logits), (_, reference_logits) in pairs
            ]
            per_row = torch.cat([torch.cat(logit_measures, 1), hidden_errors])
            window_of_row = torch.tensor(batch.indices)[rows // batch.ids.shape[1]]
            sums.index_add_(1, window_of_row, per_row.double().cpu())
            done += len(batch.indices)
            if progress:
                progress(done, len(windows.sequences))
    kl_sums, agreement_sums, losses, reference_losses, *hidden_sums = sums
    check_losses(losses)
    check_losses(reference_losses, " of the reference")
    counts = windows.scored.tolist()
    fidelity = Fidelity(
        kl=estimate(kl_sums.tolist(), counts),
        agreement=estimate(agreement_sums.tolist(), counts),
        hidden=tuple(estimate(block_sums.tolist(), counts) for block_sums in hidden_sums),
    )
    return FidelityResult(fidelity, losses, reference_losses)


def _check_shapes(model: Any, reference: Any) -> None:
    names = {"vocab_size": "vocabulary", "num_hidden_layers": "number of blocks", "hidden_size": "hidden size"}
    for key, name in names.items():
        size = getattr(model.config, key)
        expected = getattr(reference.config, key)
        if size != expected:
            raise ModelError(
                f"fidelity: expected models of the same shape, but the {name} of the model is {size} and that of the "
                f"reference {expected}; compare with the model that it was made from"
            )


def _run(compared: ComparedModel, batch: Batch, rows: Tensor) -> tuple[LogitChunks, list[Tensor]]:
    """Return the logits of some rows in chunks, and each block's output in unpruned order."""
    model = compared.model
    inverse = None if compared.permutation is None else compared.permutation.argsort().to(model.device)
    outputs = []

    def keep_output(module: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        hidden = hidden_of(output)
        outputs.append((hidden if inverse is None else hidden.index_select(-1, inverse)).flatten(0, 1))

    blocks = model.get_submodule(family_in(model, model.config.name_or_path).blocks)
    hooks = [block.register_forward_hook(keep_output) for block in blocks]
    try:
        return logits_in_chunks(model, batch, rows), outputs
    finally:
        for hook in hooks:
            hook.remove()


def _compare_logits(logits: Tensor, reference_logits: Tensor, targets: Tensor) -> Tensor:
    """Return KL, agreement, and the losses of both models at each row, (4, rows).

    Args:
        logits: Logits of the model, (rows, vocabulary).
        reference_logits: Those of the reference.
        targets: The target of each row.
    """
    log_q = log_softmax(logits.float(), -1)
    log_p = log_softmax(reference_logits.to(logits.device).float(), -1)
    target = targets.to(logits.device)[:, None]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)  # only rounding makes it negative
    same = (log_q.argmax(-1) == log_p.argmax(-1)).float()
    return torch.stack([kl, same, -log_q.gather(1, target)[:, 0], -log_p.gather(1, target)[:, 0]])


def _hidden_errors(hidden: list[Tensor], reference_hidden: list[Tensor], rows: Tensor) -> Tensor:
    """Return the relative error of the hidden state after each block at each row, (blocks, rows)."""
    errors = []
    for output, reference_output in zip(hidden, reference_hidden, strict=True):
        positions = rows.to(output.device)
        state = output[positions].float()
        expected = reference_output[positions].float()
        norm = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((state - expected).norm(dim=-1) / norm)
    return torch.stack(errors)
