"""`eggs plan`: what `prune` would do, before it does it."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.engine.plan import Plan

_ORDERS = {
    "fold": "folded into the weights, so that every N:M matrix is N:M in its own column order",
    "gather": "kept in eggs/orders.safetensors, for a packed model to gather at run time",
    "mask": "used for the masks alone",
}
_TEXTS = {"": "C4 (hub)", "demo": "the built-in text"}


def plan(
    model: flags.Model,
    method: flags.Method = None,
    pattern: flags.Pattern = None,
    calibration: flags.Calibration = None,
    nsamples: flags.NSamples = None,
    seqlen: flags.SeqLen = None,
    seed: flags.Seed = None,
    orders: flags.OrdersFlag = None,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    recipe: flags.RecipeFile = None,
    set_: flags.Set = None,
    mask: flags.Mask = None,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    memory: flags.Memory = None,
    revision: flags.Revision = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Say what prune would do to every matrix, with memory and time, without reading weights."""
    from eggs_ptp import api
    from eggs_ptp.cli.rows import fold
    from eggs_ptp.cli.terminal import line, print_json, table

    asked = flags.recipe_of(
        recipe,
        set_,
        method=method,
        pattern=pattern,
        calibration=calibration,
        nsamples=nsamples,
        seqlen=seqlen,
        seed=seed,
        orders=orders.value if orders else None,
        include=include,
        exclude=exclude,
        mask=str(mask) if mask else None,
    )
    where: dict[str, Any] = {"device": device, "dtype": dtype.value, "memory": flags.memory_of(memory)}
    decided = api.plan(model, asked, revision=revision, trust_remote_code=trust_remote_code, **where)
    if json:
        print_json(decided.to_dict())
        return
    rows = []
    for matrix in decided.to_dict()["matrices"]:
        shape = " x ".join(str(length) for length in matrix["shape"])
        verdict = (
            ("", "", f"dense: {matrix['skipped']}")
            if matrix["skipped"]
            else (matrix["pattern"], matrix["method"], ", ".join(matrix["statistics"]) or "weights alone")
        )
        rows.append((matrix["name"], (shape, matrix["reads"], *verdict)))
    heads = ("matrices", ">count", ">shape", "reads", "pattern", "method", "needs")
    table(heads, ([each.label, str(len(each.names)), *each.cells] for each in fold(rows)))
    line("\n".join(summary(model, decided)))


def summary(model: str, decided: "Plan") -> list[str]:
    """What will happen, in a few lines."""
    from eggs_ptp.cli.terminal import bytes_text, seconds_text

    data = decided.to_dict()
    counts = Counter(
        "left dense" if matrix["skipped"] else f"to {matrix['pattern']} by {matrix['method']}"
        for matrix in data["matrices"]
    )
    what = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [
        f"{model} ({data['model_type']}, {data['blocks']} blocks, {len(data['matrices'])} matrices) on "
        f"{data['device']} in {data['dtype']}: {what}; embeddings, norms and head are not pruned",
    ]
    if data["discovered"]:
        lines.append(
            f"{data['model_type']} has no family here: its linears were found in the module tree, each with inputs of "
            "its own, and no order can be folded"
        )
    if data["nsamples"]:
        source = _TEXTS.get(data["calibration"], data["calibration"])
        lines.append(f"calibration: {data['nsamples']} windows of {data['seqlen']} tokens from {source}")
    else:
        lines.append("calibration: none needed")
    if data["orders"]:
        lines.append(f"channel orders: {_ORDERS[data['orders']]}")
    lines.append(f"about {bytes_text(data['memory_bytes'])} on top of the libraries, {seconds_text(data['seconds'])}")
    if decided.budget.allowance is not None:
        held = bytes_text(decided.budget.allowance)
        lines.append(
            f"within --memory: batches of {decided.budget.batch_tokens} tokens, {held} of activations in memory, the "
            "others in files beside the output"
        )
    return lines
