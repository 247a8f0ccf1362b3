"""The flags that several verbs share, and the recipe that they make."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eggs_ptp.recipe.recipe import Recipe

_RECIPE = "What to prune, how, and on which text"
_RUN = "Running"


class Orders(StrEnum):
    """What becomes of channel orders."""

    fold = "fold"
    gather = "gather"
    mask = "mask"


class DType(StrEnum):
    """Types that blocks can be computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a hub name such as Qwen/Qwen3-0.6B, or demo.")
]
Method = Annotated[
    str | None, typer.Option(help="How to choose; see eggs methods. Default: eggs+.", rich_help_panel=_RECIPE)
]
Pattern = Annotated[
    str | None,
    typer.Option(help="N:M, N kept of every M, or a sparsity such as 0.5. Default: 2:4.", rich_help_panel=_RECIPE),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text, jsonl, Parquet, or token windows (.npy), or a data set of the hub. Default: C4 from the hub; "
        "for demo its own text.",
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
        help="Tokens in a window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_RECIPE,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of all randomness. Default: 0.", rich_help_panel=_RECIPE)]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Prune only matrices of this name or glob. May be repeated.", rich_help_panel=_RECIPE),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Leave these matrices dense. May be repeated.", rich_help_panel=_RECIPE)
]
OrdersFlag = Annotated[
    Orders | None,
    typer.Option(
        "--orders",
        help="Channel orders of permutation: in the weights, beside them, or for the mask alone. Default: fold.",
        rich_help_panel=_RECIPE,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A recipe in TOML; flags change it.", rich_help_panel=_RECIPE, show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, such as steps.score.alpha=0.7. May be repeated.",
        rich_help_panel=_RECIPE,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="Masks to start from (.safetensors or .npz) instead of choosing them.",
        rich_help_panel=_RECIPE,
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.", rich_help_panel=_RUN)]
DTypeFlag = Annotated[
    DType, typer.Option("--dtype", help="Type that blocks are computed in.", rich_help_panel=_RUN, case_sensitive=False)
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What the process may take, such as 8GiB: activations go to files as far as they must.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub.", rich_help_panel=_RUN)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model's own code run.", rich_help_panel=_RUN)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]

Try = Annotated[
    str | None,
    typer.Option(
        "--try",
        metavar="KEY=VALUE,VALUE,...",
        help="Prune with each value of a key, such as steps.select.B=0,1,2,5, and keep that of least perplexity.",
        rich_help_panel=_RECIPE,
        show_default=False,
    ),
]
TryText = Annotated[
    str | None,
    typer.Option(
        "--try-text", help="Text for --try; give one not calibrated on.", rich_help_panel=_RECIPE, show_default=False
    ),
]


def recipe_of(file: Path | None, overrides: list[str] | None, **flags: Any) -> "Recipe":
    """Read the recipe file, changed by flags (None or an empty list = not given), changed by `--set`."""
    from eggs_ptp.recipe.read import read_recipe

    given = {name: value for name, value in flags.items() if value is not None and value != []}
    return read_recipe(file, overrides or [], **given)


def memory_of(text: str | None) -> int | None:
    """The bytes that `--memory` says.

    Raises:
        RecipeError: no size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from eggs_ptp.errors import RecipeError

    try:
        return None if text is None else int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise RecipeError(f"--memory: expected a size such as 8GiB or 800MB, came {text!r}") from None


def values_of(text: str, revision: str | None, trust_remote_code: bool) -> list[str]:
    """`KEY=V1,V2` of `--try` as overrides, one a value.

    Raises:
        RecipeError: no key or value, or a model whose files are not simply where its name says.
    """
    from eggs_ptp.errors import RecipeError

    key, _, values = text.partition("=")
    if not key.strip() or not all(value.strip() for value in values.split(",")):
        raise RecipeError(f"--try: expected KEY=VALUE,VALUE,..., such as steps.select.B=0,1,2,5; came {text!r}")
    if revision or trust_remote_code:
        raise RecipeError("--try: not possible with --revision or --trust-remote-code; prune a local folder")
    return [f"{key.strip()}={value.strip()}" for value in values.split(",")]
