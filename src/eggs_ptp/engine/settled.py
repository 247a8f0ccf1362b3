"""Parts of a block that stand, because all in them is pruned: the same windows need not run through them again."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from eggs_ptp.engine.shelf import Shelf


class Settled:
    """Shortcuts through the settled parts of one block, for windows that run through it several times.

    A part is a child of the block, such as its attention, whose output is that of the one linear in it that writes to
    the residual stream. Once the others in it stand, what reaches that linear is kept, (windows, seqlen, its width);
    once it stands too, the part is that linear alone. Matrices are pruned in the order they run, so what reaches a
    settled part stands as well. Inputs wider than the stream are not kept, and parts of another form just run.
    """

    windows: slice  # those that are running

    def __init__(self, writers: Sequence[str], hidden: tuple[int, ...], shelf: Shelf | None = None) -> None:
        self._shelf = shelf or Shelf()
        self._total, self._width = (hidden[0], hidden[-1]) if hidden else (0, 0)
        parts = [path.split(".", 1)[0] for path in writers]
        self._writer = {part: path for part, path in zip(parts, writers, strict=True) if parts.count(part) == 1}
        self._changing: set[str] = set()
        self._inputs: dict[str, Tensor] = {}
        self._filled: dict[str, int] = {}  # windows of them
        self._forms: dict[str, int | None] = {}  # how many values a part returns, 0: one by itself; None: another form

    def settle(self, changing: Collection[str]) -> None:
        """From here on nothing changes but the linears of these paths."""
        self._changing = set(changing)

    @contextmanager
    def on(self, block: nn.Module) -> Iterator[None]:
        """Keep inputs and take shortcuts while this block runs. Hooks on it that stop a run have to come later."""
        with ExitStack() as stack:
            for part, path in self._writer.items():
                changing = {name for name in self._changing if name == part or name.startswith(f"{part}.")}
                writer = block.get_submodule(path)
                if changing <= {path} and self._filled.get(part) != self._total:
                    self._filled[part] = 0
                    handle = writer.register_forward_pre_hook(lambda _m, args, part=part: self._keep(part, args[0]))
                    stack.callback(handle.remove)
                elif not changing and self._filled.get(part) == self._total:
                    stack.enter_context(self._short(part, block.get_submodule(part), writer))
            yield

    def _keep(self, part: str, value: Tensor) -> None:
        if value.shape[-1] > self._width or value.dim() < 3:
            return
        if part not in self._inputs:
            self._inputs[part] = self._shelf.empty((self._total, *value.shape[1:]), value.dtype, value.device)
        self._inputs[part][self.windows] = value
        self._filled[part] += len(value)

    @contextmanager
    def _short(self, part: str, module: nn.Module, writer: nn.Module) -> Iterator[None]:
        """Run the writer in the place of the part."""
        whole, before = module.forward, module.__dict__.get("forward")  # accelerate puts one there, too

        def forward(*args: Any, **kwargs: Any) -> Any:
            if part not in self._forms:
                return self._learn(part, writer, lambda: whole(*args, **kwargs))
            form = self._forms[part]
            if form is None:
                return whole(*args, **kwargs)
            output = writer(self._inputs[part][self.windows].to(cast(Tensor, writer.weight).device))
            return (output, *[None] * (form - 1)) if form else output

        cast(Any, module).forward = forward
        try:
            yield
        finally:
            del cast(Any, module).forward
            if before is not None:
                cast(Any, module).forward = before

    def _learn(self, part: str, writer: nn.Module, run: Callable[[], Any]) -> Any:
        """Run a part whole, and see what it returns beside its writer's output."""
        written: list[Tensor] = []
        handle = writer.register_forward_hook(lambda _m, _args, output: written.append(output))
        try:
            output = run()
        finally:
            handle.remove()
        first, *rest = output if isinstance(output, tuple) else (output,)
        alike = len(written) == 1 and written[0] is first and all(value is None for value in rest)
        self._forms[part] = (len(output) if isinstance(output, tuple) else 0) if alike else None
        return output
