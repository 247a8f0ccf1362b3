"""Text generation of a whole checkpoint: tokens per second, and the memory of its linears, packed and dense."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.bench.dense import PrepackedLinear, prepack_unsupported_reason
from eggs_ptp.bench.hardware import check_memory, load_averages
from eggs_ptp.bench.timing import Timing, time_interleaved
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import ModelError
from eggs_ptp.models.load import load_model
from eggs_ptp.sparse.convert import pack, replace
from eggs_ptp.sparse.linear import NMLinear

PACKED = "packed"
STOCK = "dense stock"
PREPACKED = "dense prepacked"

Form = dict[str, nn.Module]  # the linears of a model in one form, by name


@dataclass(frozen=True)
class GenerationMeasurement:
    """Timings of `generate` of one model in its forms, packed and dense.

    Attributes:
        prompt: Tokens of the prompt.
        tokens: New tokens.
        threads: Threads of torch.
        dtype: Type of the model.
        timings: Seconds of a whole call of `generate`, by form.
        packed_bytes: Bytes of the packed linears.
        dense_bytes: Bytes of the same linears, dense.
        same_tokens: How many new tokens, from the first on, are the same packed and dense.
        load_before: Load averages before the measurement.
        load_after: Load averages after it.
    """

    prompt: int
    tokens: int
    threads: int
    dtype: torch.dtype
    timings: dict[str, Timing]
    packed_bytes: int
    dense_bytes: int
    same_tokens: int
    load_before: list[float]
    load_after: list[float]

    def tokens_per_second(self, form: str) -> float:
        """Return new tokens over the median time of a whole call of `generate`, its prompt included."""
        return self.tokens / self.timings[form].median

    @property
    def best_dense(self) -> str:
        """The fastest dense form."""
        return min(self.timings.keys() - {PACKED}, key=lambda form: self.timings[form].median)

    def ratio(self) -> tuple[float, bool]:
        """Return how many times faster packed is than the best dense form, and whether to trust it."""
        return self.timings[PACKED].speedup_over(self.timings[self.best_dense])

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as records store it, with all samples."""
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
    """Load a packed folder, or a dense pruned one, which is packed in memory.

    Args:
        folder: Folder of the checkpoint.
        dtype: Type of the weights; "auto" for that of the folder.

    Returns:
        A transformers model with packed linears.

    Raises:
        ModelError: transformers cannot load the folder.
        PatternError: It is dense, and none of its matrices is N:M.
    """
    model = load_model(folder, dtype=dtype)
    return model if _packed_linears(model) else pack(model)


def packed_shapes(model: nn.Module) -> dict[tuple[int, int, Pattern], int]:
    """Return rows, columns and pattern of the packed matrices of a model, and how many there are of each."""
    linears = _packed_linears(model).values()
    return dict(Counter((linear.out_features, linear.in_features, linear.pattern) for linear in linears))


def measure_generate(
    model: Any, *, prompt: int = 8, tokens: int = 32, rounds: int = 7, limit: float = float("inf")
) -> GenerationMeasurement:
    """Time greedy `generate` of a packed model and of its dense forms, with a random prompt.

    There is one model, and only its linears are exchanged: packed; dense with zeros, by torch's `linear` (stock); and
    dense with every linear, the head too, prepacked by oneDNN, if torch has it. Memory is that of the storages of the
    packed matrices, and of the same matrices in dense form, biases included.

    Args:
        model: A transformers model with packed linears; it is packed again afterwards.
        prompt: Tokens of the prompt.
        tokens: New tokens.
        rounds: Samples of each form.
        limit: Seconds after which it ends, see `time_interleaved`.

    Raises:
        ModelError: Prompt and new tokens exceed the model's context.
        BackendError: Too little memory is free for the dense forms.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context and prompt + tokens > context:
        raise ModelError(f"{prompt} prompt tokens and {tokens} new ones exceed the model's context of {context}")
    forms = _forms(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=generator)

    def generate(_: int = 0) -> Tensor:
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        with torch.inference_mode():
            output_ids: Tensor = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
                **greedy,
            )
        return output_ids[0, prompt:]

    def use_form(form: str) -> None:
        for name, module in forms[form].items():
            replace(model, name, module)

    new_tokens = {}
    for form in forms:
        use_form(form)
        new_tokens[form] = generate()
    load_before = load_averages()
    timings = time_interleaved(dict.fromkeys(forms, generate), rounds=rounds, limit=limit, prepare=use_form)
    use_form(PACKED)
    packed = _packed_linears(model)
    return GenerationMeasurement(
        prompt=prompt,
        tokens=tokens,
        threads=torch.get_num_threads(),
        dtype=model.dtype,
        timings=timings,
        packed_bytes=_storage_bytes(packed),
        dense_bytes=_storage_bytes({name: forms[STOCK][name] for name in packed}),
        same_tokens=int((new_tokens[PACKED] == new_tokens[STOCK]).long().cumprod(0).sum()),
        load_before=load_before,
        load_after=load_averages(),
    )


def _packed_linears(model: nn.Module) -> dict[str, NMLinear]:
    """Return the packed linears of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NMLinear)}


def _forms(model: nn.Module) -> dict[str, Form]:
    """Return all linears of the model in each form, also those that are the same in several forms."""
    packed = _packed_linears(model)
    dense_sizes = [
        linear.out_features * linear.in_features * linear.packed.dtype.itemsize for linear in packed.values()
    ]
    check_memory(2 * sum(dense_sizes))
    unpacked: Form = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    stock = unpacked | {name: module.dense() for name, module in packed.items()}
    forms = {PACKED: unpacked | packed, STOCK: stock}
    if prepack_unsupported_reason(next(iter(packed.values())).packed.dtype) is None:
        forms[PREPACKED] = {name: PrepackedLinear(cast(nn.Linear, module)) for name, module in stock.items()}
    return forms


def _storage_bytes(modules: Mapping[str, nn.Module]) -> int:
    """Return the bytes of the storages of all tensors of some modules, each storage once."""
    tensors = [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
