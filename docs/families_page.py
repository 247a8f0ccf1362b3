"""The page docs/families.md: the table of families, every shape walked through, and accuracy family by family."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accuracy_page import Rows, made_by, tables_of

from eggs_ptp.models.family import Family
from eggs_ptp.models.moe import LAYOUTS, moe_of
from eggs_ptp.models.table import FAMILIES

RESULTS = Path(__file__).parent / "results"
_NAMES = {
    "llama": "Llama 2, 3, 3.1, 3.2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2, 2.5",
    "qwen3": "Qwen 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (1B, 270M)",
    "olmo2": "OLMo 2",
    "phi3": "Phi-3, Phi-4",
    "stablelm": "StableLM",
    "opt": "OPT",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "falcon": "Falcon",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen 1.5 and 2 MoE",
    "qwen3_moe": "Qwen 3 MoE",
    "olmoe": "OLMoE",
}
_NOTES = {
    "gemma2": "norms behind attention and MLP too",
    "gemma3_text": "as Gemma 2; norms of queries and keys",
    "olmo2": "norms behind attention and MLP only",
    "phi3": "`qkv_proj` folds the rows of its values, `gate_up_proj` its halves alike",
    "stablelm": "LayerNorm, rotary over part of a head, in line or parallel",
    "opt": "learned positions; OPT-350m, normed behind and with projected embeddings, too",
    "gpt2": "`Conv1D`: pruned along its inputs, stored as (in, out) as before (`transposed` in `eggs.json`); packed one row an output",
    "gpt_neox": "`query_key_value` head by head; parallel or in line",
    "falcon": "`query_key_value` by key/value head, of 7B, 40B, 180B and RW; ALiBi",
    "mixtral": "experts one by one",
    "qwen2_moe": "as Mixtral, with a shared expert, and blocks without experts",
    "qwen3_moe": "as Mixtral",
    "olmoe": "as Mixtral",
}
_HEAD = """# Model families

<!-- Written by docs/make_pages.py from the table of families, results/family-table.json and results/families.json. -->

A family says where a model type keeps its decoder blocks, what each linear of a block reads and writes, and how far an
order of those channels reaches (`eggs_ptp/models`). Embeddings, norms, routers and the head are never pruned; biases
stay; what is tied stays tied and is folded once. A checkpoint that was saved without its head, as that of GPT-2 on the
hub, has other names for the same tensors; it keeps them.

| model type | models | linears of a block, in the order they are pruned | folds | |
|---|---|---|---|---|
"""
_TAIL = """
`residual`: one order for the whole model, of what embeddings, norms, all readers of the residual stream and all that
write to it, and the head have in common. `heads`: one inside each key/value head. `mlp`, `shared`, `experts`: one for
the inside of a block's MLP, its shared expert, each of its experts. With `orders = "fold"` they are moved into the
weights, and the model computes what it did.

**Drift.** Methods that compare with the dense model (`eggs+`) ask a matrix that adds to the residual stream for what
the stream lacks. Where a norm, a gate or a router stands between the two (Gemma, OLMo 2, OPT-350m, experts), it is
asked for its own output instead.

## Experts

Checkpoints have a matrix for each expert, and so has the run, though transformers fuses them when it loads a model.
Every expert is pruned by the tokens that the router sends it. One that is sent fewer tokens than it has inputs (in all
calibration windows together, counted in the block as the blocks before it leave it) is pruned by all tokens of its
layer instead. `eggs.json` has for every expert's matrix how many `tokens` were seen, and whether they were `all_tokens`.

- What the dense model has for a token is not compared with what an expert reads: its router may have sent the token
  elsewhere. Of experts, methods that compare correct nothing; of attention they do.
- A variance within windows (`input_var_within`) takes the tokens of a batch that an expert is sent for one window.
- Experts that a checkpoint stores fused (`gate_up_proj` and `down_proj` with three axes) are read as matrices of their own,
  a slice at a time, and fused again as a block is written: the output has the names and shapes of its source.
- Packed, a layer's experts are modules of their own in transformers, too; all or none of a layer's are packed.

## Without a family

Other decoder-only models are pruned, too: the list of equal modules with most weights has the blocks, and every linear
in one is pruned as the only reader of its inputs. No order can be folded, as nothing says who else reads the
channels: what would be folded is kept beside the weights (`orders = "gather"`). `eggs plan`, and `eggs prune` before it
begins, say that a family is missing. Routers (a linear in or called `router`, a `gate` beside `experts`) stay as they are;
linears of `experts.N` count as sent some tokens only. Refused, in one line: encoder-decoder models, encoders, and models
that see or hear; experts that only a family tells apart; blocks in two lists; blocks that cannot be run one by one, as
they are given something that depends on the tokens, or not what the block before gave. A linear that its block never
calls as a module, as one of Mamba's, has no statistics; the error names it, and `--exclude` leaves it out.

**Causal masks** that old checkpoints of GPT-2, GPT-J and GPT-NeoX (Pythia) store in every block (`attention.bias` with
four axes, of any type, and `masked_bias`, in float16 infinite) are taken over as they are.

## How it is tested

On tiny random models of every row, with two blocks, uneven head counts and random norms, biases and embeddings:

- every linear of a block is in the family, and those that read the same see the same activation, and only those
  (`tests/models/test_families.py`);
- random orders of every space, folded, change no logit by more than 1e-9 in float64, each space by itself and all
  together, and unfold to the same bits (ibid.);
- blocks run one by one give the hidden states that transformers gives, in float32 and from bfloat16
  (`tests/engine/test_capture.py`), and what follows them its logits (`tests/engine/test_head.py`);
- pruned by `eggs+` to 2:4 and folded, verified against the source, loaded and generating with plain transformers, its
  logits packed against dense (`tests/products/test_every_shape.py`);
- masks of experts by Wanda equal to those computed by hand from what transformers routes (ibid.).

For models without a family the same with BLOOM, GPT-J, GPT-BigCode and Cohere. No model of these shapes that was
trained by others has been pruned here but Llama-shaped ones.

## Every shape, by one command

```
{command}
```

The tests' models: two blocks, random weights. Each was pruned to 2:4 by `{method}`, verified against its source, loaded by
plain transformers, packed, and loaded packed. *Linears pruned* counts the matrices in the checkpoint's blocks; routers
of experts are none. *Apart*: the largest difference of a logit, packed against dense, over the largest logit, in
float32. *Writes*: greedy tokens after a prompt, from the packed folder, and how they compare with the dense folder's.

| model | type | family | linears pruned | folds | verified | apart | writes |
|---|---|---|--:|---|---|--:|---|
"""
_MOE = """
## A mixture of experts, from the command line

`--keep` leaves the models of that table. So that there is one to try:

```
python benchmarks/family_table.py --only mixtral --keep build/families
eggs plan build/families/mixtral/model --calibration README.md --nsamples 8 --seqlen 64
eggs prune build/families/mixtral/model -o build/moe --calibration README.md --nsamples 8 --seqlen 64
eggs verify build/moe --against build/families/mixtral/model
eggs export build/moe --format packed -o build/moe-packed
eggs generate build/moe-packed --prompt "The function returns" --tokens 12
```

`qwen2_moe`, `qwen3_moe` and `olmoe` go the same way. The text of random weights is noise; what it shows is that the
packed folder loads and runs.

## Accuracy, family by family

Siblings of the built-in model, trained on its text with its tokenizer by `training/train_demo.py`, hidden size 64, five
blocks, four heads. The table compares methods on a model, not models with each other: they were not trained equally
long, and a model that has seen little text has little to lose. How large an excess is says nothing of a family.

| sibling | parameters | steps | tokens seen | dense perplexity | made by |
|---|--:|--:|--:|--:|---|
"""
_ACCURACY = """
Calibrated on {nsamples} windows of {seqlen} tokens of the built-in calibration text, drawn anew for each of three seeds,
the same for all methods; judged on the built-in evaluation text. Perplexity: mean and standard deviation (sd) over the
seeds. Excess: ln(perplexity / dense), the mean. `ria_cp` is RIA with channel permutation, folded. Where `eggs` and
`ria_cp` have the same numbers, `eggs` found no blocks worth taking (B = 0), and is then RIA with the same permutation.

"""


def families() -> str:
    """The whole page."""
    one = SimpleNamespace(num_local_experts=1, num_experts=1)
    mixtures = [moe_of(SimpleNamespace(**vars(one), model_type=model_type)) for model_type in LAYOUTS]
    known = "".join(_row(family) for family in (*FAMILIES.values(), *mixtures))
    walked = json.loads((RESULTS / "family-table.json").read_text(encoding="utf-8"))
    tail = _TAIL.format(command=walked["command"], method=walked["method"])
    return _HEAD + known + tail + "".join(map(_walked, walked["rows"])) + _MOE + _accuracy()


def _walked(row: dict[str, Any]) -> str:
    cells = [
        row["name"],
        f"`{row['model_type']}`",
        "yes" if row["known"] else "no",
        f"{row['pruned']} of {row['linears']}",
        ", ".join(row["folds"]) or "nothing",
        "; ".join(row["failures"]) or f"{row['checks']} checks",
        f"{row['apart']:.0e}",
        f"{row['new_tokens']}, {'the same' if row['same_tokens'] else 'others'}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _accuracy() -> str:
    """The siblings, what each method costs them, and what can be read off it."""
    record = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    tables = tables_of(record)
    siblings = "".join(_sibling(name, facts) for name, facts in record["models"].items())
    seqlen = next(iter(record["models"].values()))["seqlen"]
    parts = [siblings + _ACCURACY.format(nsamples=record["protocol"]["nsamples"], seqlen=seqlen)]
    patterns = list(dict.fromkeys(pattern for _, pattern in tables))
    parts.append(f"| sibling | method | {' | '.join(f'{p} perplexity | sd | excess' for p in patterns)} |\n")
    parts.append(f"|---|---|{'--:|' * 3 * len(patterns)}\n")
    for name in record["models"]:
        methods = dict.fromkeys(method for pattern in patterns for method in tables.get((name, pattern), {}))
        for method in methods:
            found = [cell for pattern in patterns for cell in _cells(tables[name, pattern].get(method, []))]
            parts.append(f"| {name} | {method} | {' | '.join(found)} |\n")
    return "".join(parts) + "\n" + _reading(tables) + "\n### How it was made\n\n" + made_by(record)


def _sibling(name: str, facts: dict[str, Any]) -> str:
    told = facts["training"]
    shape = told["shape"]
    size = f"--hidden {shape['hidden_size']} --intermediate {shape['intermediate_size']}"
    size += f" --layers {shape['num_hidden_layers']} --heads {shape['num_attention_heads']}"
    made = f"`python training/train_demo.py --family {told['family']} {size} --steps {told['steps']} --out build/siblings/{name}`"
    seen = f"{told['steps'] * told['batch_tokens']:,}"
    return f"| {name} | {told['parameters']:,} | {told['steps']:,} | {seen} | {facts['dense']:.2f} | {made} |\n"


def _cells(rows: Rows) -> list[str]:
    if not rows:
        return ["", "", ""]
    found = [row["perplexity"] for row in rows]
    spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return [f"{statistics.mean(found):.2f}", spread, f"{statistics.mean(row['excess'] for row in rows):.3f}"]


def _reading(tables: dict[tuple[str, str], dict[str, Rows]]) -> str:
    """Each method beside the ones before it, seed by seed."""
    pairs = (("ria_cp", "magnitude"), ("eggs", "ria_cp"), ("eggs+", "eggs"))
    lines = []
    for mine, other in pairs:
        said: dict[str, list[str]] = {"better": [], "worse": [], "no different beyond seed noise": []}
        for (name, pattern), table in tables.items():
            if mine not in table or other not in table:
                continue
            by_seed = {row["seed"]: row["excess"] for row in table[other]}
            apart = [row["excess"] - by_seed[row["seed"]] for row in table[mine] if row["seed"] in by_seed]
            mean = statistics.mean(apart)
            clear = len(apart) > 1 and abs(mean) > 2 * statistics.stdev(apart)
            verdict = ("better" if mean < 0 else "worse") if clear else "no different beyond seed noise"
            said[verdict].append(f"{name} {pattern} ({mean:+.3f})")
        text = "; ".join(f"{verdict}: {', '.join(places)}" for verdict, places in said.items() if places)
        if text:
            lines.append(f"- `{mine}` beside `{other}`, difference of the excess: {text}.\n")
    best = {place: min(table, key=lambda method: _excess(table[method])) for place, table in tables.items()}
    won = [place for place, method in best.items() if method == "eggs+"]
    text = f"- `eggs+` has the least excess in {len(won)} of {len(best)} columns"
    lost = [
        f"{name} {pattern}, where `{best[name, pattern]}` has" for name, pattern in best if (name, pattern) not in won
    ]
    lines.append(f"{text}; not on {', '.join(lost)}.\n" if lost else f"{text}.\n")
    return (
        "A difference is called clear where its mean over the seeds is more than twice its standard deviation.\n\n"
        + "".join(lines)
    )


def _excess(rows: Rows) -> float:
    return statistics.mean(row["excess"] for row in rows)


def _row(family: Family) -> str:
    paths = [linear.path.replace(".0.", ".*.") for linear in family.linears]
    groups: dict[str, list[str]] = {}
    for path in paths:
        where, _, name = path.rpartition(".")
        groups.setdefault(where, []).append(name)
    linears = ", ".join(
        f"`{where}.`({', '.join(names)})" if where else ", ".join(names) for where, names in groups.items()
    )
    folds = ", ".join(space.partition("[")[0] for space, reach in family.reach.items() if reach != "fixed")
    notes = _NOTES.get(family.model_type, "")
    return f"| `{family.model_type}` | {_NAMES[family.model_type]} | {linears} | {folds} | {notes} |\n"
