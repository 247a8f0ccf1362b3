"""A whole checkpoint: tokens a second through `generate`, and the memory of its linears, packed and dense."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.bench.contest import Timing, contest
from eggs_ptp.bench.dense import Prepacked, why_not_prepacked
from eggs_ptp.bench.hardware import check_memory, load
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import ModelError
from eggs_ptp.models.load import load_model
from eggs_ptp.sparse.convert import pack, replace
from eggs_ptp.sparse.linear import NMLinear

PACKED, STOCK, PREPACKED = "packed", "dense stock", "dense prepacked"

Form = dict[str, nn.Module]


@dataclass(frozen=True)
class Generated:
    """One model in its forms: seconds of `generate`, bytes of the linears, and whether they say the same."""

    prompt: int
    tokens: int
    threads: int
    dtype: torch.dtype
    timings: dict[str, Timing]
    packed_bytes: int
    dense_bytes: int
    same_tokens: int  # how many of the new tokens of packed and dense are the same, from the first on
    load_before: list[float]
    load_after: list[float]

    def tokens_per_second(self, form: str) -> float:
        """New tokens over the median time of a whole call of `generate`, its prompt included."""
        return self.tokens / self.timings[form].median

    @property
    def best_dense(self) -> str:
        """The fastest dense form."""
        return min(self.timings.keys() - {PACKED}, key=lambda form: self.timings[form].median)

    def ratio(self) -> tuple[float, bool]:
        """How many times faster packed is than the best dense form, and whether that is trusted."""
        return self.timings[PACKED].over(self.timings[self.best_dense])

    def to_dict(self) -> dict[str, Any]:
        """As a record keeps it, with all samples."""
        value, trusted = self.ratio()
        return {
            "prompt_tokens": self.prompt,
            "new_tokens": self.tokens,
            "same_tokens": self.same_tokens,
            "threads": self.threads,
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_before": self.load_before,
            "load_after": self.load_after,
            "microseconds": {form: timing.microseconds for form, timing in self.timings.items()},
            "spread": {form: round(timing.spread, 4) for form, timing in self.timings.items()},
            "tokens_per_second": {form: round(self.tokens_per_second(form), 2) for form in self.timings},
            "ratio": {"over": self.best_dense, "value": round(value, 3), "trusted": trusted},
            "linears_bytes": {"packed": self.packed_bytes, "dense": self.dense_bytes},
        }


def open_packed(folder: Path, *, dtype: torch.dtype | str = "auto") -> Any:
    """Load a packed folder, or pack a dense pruned one in memory.

    Raises:
        ModelError: transformers cannot load the folder.
        PatternError: it is dense, and no matrix of it is N:M.
    """
    model = load_model(folder, dtype=dtype)
    return model if _packed(model) else pack(model)


def shapes(model: nn.Module) -> dict[tuple[int, int, Pattern], int]:
    """Rows, columns and pattern of the packed matrices, and how many there are of each."""
    return dict(Counter((each.out_features, each.in_features, each.pattern) for each in _packed(model).values()))


def measure_generate(
    model: Any, *, prompt: int = 8, tokens: int = 32, rounds: int = 7, limit: float = float("inf")
) -> Generated:
    """Time greedy `generate` of a packed model against its dense forms, with random prompts of `prompt` tokens.

    It is one model whose linears change places, so that all else is the same: packed; dense with its zeros, by torch's
    `linear` (stock); and dense with every linear, the head too, laid out by oneDNN (prepacked), where torch has it.
    Memory is that of the storages behind the packed matrices, and behind their dense weights, biases included.

    Raises:
        ModelError: prompt and new tokens exceed the model's context.
        BackendError: too little memory is free for the dense forms.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context and prompt + tokens > context:
        raise ModelError(f"{prompt} prompt tokens and {tokens} new ones exceed the model's context of {context}")
    forms = _forms(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=generator)

    def generate(_: int = 0) -> Tensor:
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        with torch.inference_mode():
            made: Tensor = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
                **how,
            )
        return made[0, prompt:]

    def take(form: str) -> None:
        for name, module in forms[form].items():
            replace(model, name, module)

    said = {}
    for form in forms:
        take(form)
        said[form] = generate()
    before = load()
    timings = contest(dict.fromkeys(forms, generate), rounds=rounds, limit=limit, prepare=take)
    take(PACKED)
    return Generated(
        prompt,
        tokens,
        torch.get_num_threads(),
        model.dtype,
        timings,
        _bytes(_packed(model)),
        _bytes({name: forms[STOCK][name] for name in _packed(model)}),
        int((said[PACKED] == said[STOCK]).long().cumprod(0).sum()),
        before,
        load(),
    )


def _packed(model: nn.Module) -> dict[str, NMLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NMLinear)}


def _forms(model: nn.Module) -> dict[str, Form]:
    """The linears of each form by name, those included that a form leaves as they are: another may not."""
    packed = _packed(model)
    check_memory(sum(2 * each.out_features * each.in_features * each.packed.dtype.itemsize for each in packed.values()))
    others: Form = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    stock = others | {name: module.dense() for name, module in packed.items()}
    forms = {PACKED: others | packed, STOCK: stock}
    if why_not_prepacked(next(iter(packed.values())).packed.dtype) is None:
        forms[PREPACKED] = {name: Prepacked(cast(nn.Linear, module)) for name, module in stock.items()}
    return forms


def _bytes(modules: Mapping[str, nn.Module]) -> int:
    tensors = [each for module in modules.values() for each in (*module.parameters(), *module.buffers())]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
