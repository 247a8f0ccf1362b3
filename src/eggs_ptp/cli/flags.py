"""Command-line options that several verbs share, gathered in dataclasses."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from eggs_ptp.recipe.recipe import Recipe

_RECIPE = "Method, pattern and calibration"
_RUN = "Device and memory"


class Permutation(StrEnum):
    """How the channel permutations that a method finds are applied."""

    fold = "fold"
    gather = "gather"
    mask = "mask"


class DType(StrEnum):
    """Data types that blocks can be computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    """Return the callback of a hidden option that is the old name of another option; it warns when it is used."""

    def warn(value: Any) -> Any:
        if value not in (None, False):
            warnings.warn(f"{old} is now {new}", FutureWarning, stacklevel=1)
        return value

    return warn


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a hub name such as Qwen/Qwen3-0.6B, or demo.")
]
Method = Annotated[
    str | None, typer.Option(help="Pruning method; eggs methods lists them. Default: eggs+.", rich_help_panel=_RECIPE)
]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="N:M (keep N of every M weights of a row), or a sparsity such as 0.5. Default: 2:4.",
        rich_help_panel=_RECIPE,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Calibration text: a text, jsonl or Parquet file, token windows (.npy), or a data set of the hub. "
        "Default: C4 from the hub; for demo its built-in text.",
        rich_help_panel=_RECIPE,
    ),
]
NSamples = Annotated[
    int | None, typer.Option("--nsamples", help="Calibration windows. Default: 128.", rich_help_panel=_RECIPE)
]
SeqLen = Annotated[
    int | None,
    typer.Option(
        "--seqlen",
        help="Tokens of each window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_RECIPE,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of all random choices. Default: 0.", rich_help_panel=_RECIPE)]
PermutationFlag = Annotated[
    Permutation | None,
    typer.Option(
        "--permutation",
        help="How channel permutations are applied: folded into the weights, stored for a packed model to gather at "
        "run time, or used to choose the mask only. Default: fold.",
        rich_help_panel=_RECIPE,
    ),
]
OrdersFlag = Annotated[
    Permutation | None,
    typer.Option(
        "--orders", help="Old name of --permutation.", hidden=True, callback=renamed("--orders", "--permutation")
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Prune only matrices with this name or glob. May be repeated.", rich_help_panel=_RECIPE),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave matrices with this name or glob dense. May be repeated.", rich_help_panel=_RECIPE),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A recipe (TOML); flags override it.", rich_help_panel=_RECIPE, show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as steps.score.alpha=0.7. May be repeated.",
        rich_help_panel=_RECIPE,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="Use the masks of this file (.safetensors or .npz) in place of the method's own.",
        rich_help_panel=_RECIPE,
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.", rich_help_panel=_RUN)]
DTypeFlag = Annotated[
    DType,
    typer.Option("--dtype", help="Data type that blocks are computed in.", rich_help_panel=_RUN, case_sensitive=False),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory limit of the process, such as 8GiB: activations that do not fit go to disk.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub.", rich_help_panel=_RUN)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that comes with the model.", rich_help_panel=_RUN),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True)
class RecipeFlags:
    """Options that make a recipe."""

    method: Method = None
    pattern: Pattern = None
    calibration: Calibration = None
    nsamples: NSamples = None
    seqlen: SeqLen = None
    seed: Seed = None
    permutation: PermutationFlag = None
    orders: OrdersFlag = None
    include: Include = None
    exclude: Exclude = None
    file: RecipeFile = None
    overrides: Set = None
    mask: Mask = None

    def recipe(self, *overrides: str) -> "Recipe":
        """Return the recipe of the file, changed by the flags, then by `--set` and `overrides`.

        Args:
            *overrides: `KEY=VALUE`, applied after those of `--set`.

        Raises:
            RecipeError: The file or a value cannot be understood.
        """
        permutation = self.permutation or self.orders
        return make_recipe(
            self.file,
            [*(self.overrides or ()), *overrides],
            method=self.method,
            pattern=self.pattern,
            calibration=self.calibration,
            nsamples=self.nsamples,
            seqlen=self.seqlen,
            seed=self.seed,
            permutation=permutation.value if permutation else None,
            include=self.include,
            exclude=self.exclude,
            mask=str(self.mask) if self.mask else None,
        )


@dataclass(frozen=True)
class DeviceFlags:
    """Options that say where and in which data type a model is computed."""

    device: Device = "auto"
    dtype: DTypeFlag = DType.auto

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for functions of `eggs_ptp.api`."""
        return {"device": self.device, "dtype": self.dtype.value}


@dataclass(frozen=True)
class RunFlags(DeviceFlags):
    """Options of a pruning run that do not change the recipe."""

    memory: Memory = None
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for `api.plan` and `api.prune`.

        Raises:
            RecipeError: `--memory` is not a size.
        """
        from eggs_ptp.engine.planning.memory_budget import parse_memory

        return {
            **super().arguments(),
            "memory": parse_memory(self.memory),
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }


def with_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Expand the parameters of a verb that are dataclasses of options into one option per field.

    typer reads a command's options from its signature. The returned function has a signature with the fields in place
    of the dataclass, and builds the dataclass from their values when the command runs.

    Args:
        verb: A typer command; parameters that are annotated with a dataclass are keyword-only.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = parameter.annotation
        types = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
            )
            for field in dataclasses.fields(parameter.annotation)
        ]

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        flags = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        verb(**values, **flags)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def make_recipe(file: Path | None, overrides: Sequence[str], **flags: Any) -> "Recipe":
    """Read a recipe file and change it by flags, then by overrides.

    Args:
        file: A recipe in TOML; None starts from the defaults.
        overrides: `KEY=VALUE`, as for `--set`.
        **flags: Recipe keys as `recipe.read.read_recipe` takes them; None or an empty list leaves a key alone.

    Raises:
        RecipeError: The file or a value cannot be understood.
    """
    from eggs_ptp.recipe.read import read_recipe

    requested = {name: value for name, value in flags.items() if value is not None and value != []}
    return read_recipe(file, overrides, **requested)
