"""Avoids recomputing the modules of a block that no longer change because their matrices are pruned."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from eggs_ptp.engine.tensors.activation_store import ActivationStore


class ModuleOutputCache:
    """Replaces finished modules of one block by their last linear, whose input is cached.

    A module is a child of the block, such as its attention, whose output is that of its one linear that writes to the
    residual stream (its producer). Once all other matrices in the module are pruned, the producer's input no longer
    changes and is cached, (windows, seqlen, channels); once the producer is pruned too, running the module is one
    product with it. Matrices are pruned in the order in which they run, so a finished module's input is final as well.
    Inputs wider than the residual stream are not cached, and modules of another form simply run.

    Args:
        producers: Paths of the linears that write to the residual stream.
        hidden_shape: Of the block's hidden states, (windows, seqlen, channels); () where there are none.
        store: Where the cached inputs are kept.

    Attributes:
        windows: The windows that are running; set before each forward pass.
    """

    windows: slice

    def __init__(
        self, producers: Sequence[str], hidden_shape: tuple[int, ...], store: ActivationStore | None = None
    ) -> None:
        self._store = store or ActivationStore()
        self._windows = hidden_shape[0] if hidden_shape else 0
        self._width = hidden_shape[-1] if hidden_shape else 0
        modules = [path.split(".", 1)[0] for path in producers]
        self._producer = {
            module: path for module, path in zip(modules, producers, strict=True) if modules.count(module) == 1
        }
        self._pending: set[str] = set()
        self._inputs: dict[str, Tensor] = {}
        self._cached_windows: dict[str, int] = {}
        # Values that a module returns; 0 for a bare tensor, None for a module that cannot be replaced.
        self._tuple_length: dict[str, int | None] = {}

    def mark_pending(self, paths: Collection[str]) -> None:
        """Say that only the linears of these paths will still change."""
        self._pending = set(paths)

    @contextmanager
    def on(self, block: nn.Module) -> Iterator[None]:
        """Cache inputs and replace finished modules while this block runs.

        Hooks that stop the forward pass have to be registered later.
        """
        with ExitStack() as stack:
            for module, path in self._producer.items():
                pending = {name for name in self._pending if name == module or name.startswith(f"{module}.")}
                producer = block.get_submodule(path)
                is_cached = self._cached_windows.get(module) == self._windows
                if pending <= {path} and not is_cached:
                    self._cached_windows[module] = 0
                    handle = producer.register_forward_pre_hook(
                        lambda _m, args, module=module: self._cache(module, args[0])
                    )
                    stack.callback(handle.remove)
                elif not pending and is_cached:
                    stack.enter_context(self._replaced(module, block.get_submodule(module), producer))
            yield

    def _cache(self, module: str, value: Tensor) -> None:
        if value.shape[-1] > self._width or value.dim() < 3:
            return
        if module not in self._inputs:
            self._inputs[module] = self._store.empty((self._windows, *value.shape[1:]), value.dtype, value.device)
        self._inputs[module][self.windows] = value
        self._cached_windows[module] += len(value)

    @contextmanager
    def _replaced(self, name: str, module: nn.Module, producer: nn.Module) -> Iterator[None]:
        """Run the producer alone in place of its module."""
        full_forward = module.forward
        instance_forward = module.__dict__.get("forward")  # accelerate sets one there, too

        def forward(*args: Any, **kwargs: Any) -> Any:
            if name not in self._tuple_length:
                return self._learn_output_form(name, producer, lambda: full_forward(*args, **kwargs))
            length = self._tuple_length[name]
            if length is None:
                return full_forward(*args, **kwargs)
            output = producer(self._inputs[name][self.windows].to(cast(Tensor, producer.weight).device))
            return (output, *[None] * (length - 1)) if length else output

        cast(Any, module).forward = forward
        try:
            yield
        finally:
            del cast(Any, module).forward
            if instance_forward is not None:
                cast(Any, module).forward = instance_forward

    def _learn_output_form(self, name: str, producer: nn.Module, run: Callable[[], Any]) -> Any:
        """Run a module fully once, and see what it returns besides its producer's output."""
        produced: list[Tensor] = []
        handle = producer.register_forward_hook(lambda _m, _args, output: produced.append(output))
        try:
            output = run()
        finally:
            handle.remove()
        first, *rest = output if isinstance(output, tuple) else (output,)
        is_replaceable = len(produced) == 1 and produced[0] is first and all(value is None for value in rest)
        length = len(output) if isinstance(output, tuple) else 0
        self._tuple_length[name] = length if is_replaceable else None
        return output
