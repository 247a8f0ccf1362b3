"""How closely one model follows another, without labels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from eggs_ptp.engine.through import hidden_of
from eggs_ptp.errors import ModelError
from eggs_ptp.evaluation.estimate import Estimate, estimate
from eggs_ptp.evaluation.perplexity import BATCH_TOKENS, LOSS_ROWS, Progress, check_losses, evaluating
from eggs_ptp.evaluation.window import IGNORED, Batch, EvaluationWindows, batches
from eggs_ptp.models.load import family_in


class Follower(NamedTuple):
    """A model, and the order that its residual stream was folded into: place i holds what channel `order[i]` held."""

    model: Any
    order: Tensor | None = None


@dataclass(frozen=True)
class Fidelity:
    """What a model shares with its reference; every number is a mean over the scored positions.

    `kl` is KL(reference || model) = sum_v p(v) (log p(v) - log q(v)) in nats, p the reference's next-token
    probabilities and q the model's. `agreement` is the share of positions where both find the same token likeliest.
    `hidden[b]` is |h' - h| / |h| at the output of block b, h the reference's hidden state of a position and h' the
    model's, both in the order of channels that the unpruned model has.
    """

    kl: Estimate
    agreement: Estimate
    hidden: tuple[Estimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        hidden = [found.to_dict() for found in self.hidden]
        return {"kl": self.kl.to_dict(), "agreement": self.agreement.to_dict(), "hidden": hidden}


@dataclass(frozen=True, eq=False)
class Followed:
    """A fidelity, and the losses of both models on the same windows, float64 (windows,), sums in nats."""

    fidelity: Fidelity
    losses: Tensor
    reference_losses: Tensor


def follow(
    follower: Follower,
    reference: Follower,
    windows: EvaluationWindows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Followed:
    """Run both models over the same windows, batch by batch, and measure how the first follows the second.

    Probabilities in float32, sums over a window in float64; standard errors over windows, see `estimate`.

    Raises:
        ModelError: vocabularies, numbers of blocks or widths differ, or blocks that cannot be found.
        NumericsError: the loss of a window is NaN or infinite.
    """
    _check_alike(follower.model, reference.model)
    depth = follower.model.config.num_hidden_layers
    sums = torch.zeros(4 + depth, len(windows.sequences), dtype=torch.float64)
    done = 0
    with evaluating(follower.model, reference.model):
        for batch in batches(windows, batch_tokens):
            rows = (batch.targets != IGNORED).flatten().nonzero().flatten()
            (ours, our_states), (theirs, their_states) = _run(follower, batch), _run(reference, batch)
            moved = _moved(our_states, their_states, rows)
            per_row = torch.cat([_compared([ours, theirs], batch.targets.flatten(), rows), moved])
            place = torch.tensor(batch.chosen)[rows // batch.ids.shape[1]]
            sums.index_add_(1, place, per_row.double().cpu())
            done += len(batch.chosen)
            if progress:
                progress(done, len(windows.sequences))
    check_losses(sums[2])
    check_losses(sums[3], " of the reference")
    counts = windows.scored.tolist()
    kl, agreement, *hidden = (estimate(row.tolist(), counts) for row in (sums[0], sums[1], *sums[4:]))
    return Followed(Fidelity(kl, agreement, tuple(hidden)), sums[2], sums[3])


def _check_alike(model: Any, reference: Any) -> None:
    keys = {"vocab_size": "vocabulary", "num_hidden_layers": "number of blocks", "hidden_size": "hidden size"}
    for key, name in keys.items():
        came, expected = getattr(model.config, key), getattr(reference.config, key)
        if came != expected:
            raise ModelError(
                f"fidelity: the {name} of the model is {came} and of the one it is set against {expected}; "
                "give the model that it was made from"
            )


def _run(follower: Follower, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits of all positions, (positions, vocabulary), and what each block puts out, in the unpruned order."""
    model, found = follower.model, []
    back = None if follower.order is None else follower.order.argsort().to(model.device)

    def keep(module: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        state = hidden_of(output)
        found.append((state if back is None else state.index_select(-1, back)).flatten(0, 1))

    blocks = model.get_submodule(family_in(model, model.config.name_or_path).blocks)
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1), found
    finally:
        for hook in hooks:
            hook.remove()


def _compared(logits: list[Tensor], targets: Tensor, rows: Tensor) -> Tensor:
    """KL, agreement and both losses of each row, (4, rows)."""
    parts = []
    for part in rows.split(LOSS_ROWS):
        place = part.to(logits[0].device)
        ours, theirs = (log_softmax(all_rows[place].float(), -1) for all_rows in logits)
        target = targets[part].to(place.device)[:, None]
        kl = (theirs.exp() * (theirs - ours)).sum(-1).clamp_min(0)  # rounding alone can make it less
        same = (ours.argmax(-1) == theirs.argmax(-1)).float()
        parts.append(torch.stack([kl, same, -ours.gather(1, target)[:, 0], -theirs.gather(1, target)[:, 0]]))
    return torch.cat(parts, 1)


def _moved(ours: list[Tensor], theirs: list[Tensor], rows: Tensor) -> Tensor:
    """Relative error of the hidden state behind each block, (blocks, rows)."""
    errors = []
    for mine, other in zip(ours, theirs, strict=True):
        place = rows.to(mine.device)
        state, expected = mine[place].float(), other[place].float()
        size = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((state - expected).norm(dim=-1) / size)
    return torch.stack(errors)
