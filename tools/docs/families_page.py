"""The page docs/families.md: the families, every tested architecture, and accuracy by family."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accuracy_page import Rows, Tables, provenance, tables_of

from eggs_ptp.models.family import Family
from eggs_ptp.models.moe import LAYOUTS, moe_of
from eggs_ptp.models.registry import FAMILIES

RESULTS = Path(__file__).parents[2] / "docs" / "results"
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
    "gemma2": "norms after attention and MLP too",
    "gemma3_text": "as Gemma 2; norms of queries and keys",
    "olmo2": "norms only after attention and MLP",
    "phi3": "in `qkv_proj` the rows of the values are permuted, in `gate_up_proj` both halves alike",
    "stablelm": "LayerNorm; rotary embedding of part of a head; sequential or parallel attention and MLP",
    "opt": "learned positions; includes OPT-350m, which has norms after attention and MLP and projected embeddings",
    "gpt2": "`Conv1D`: pruned along its inputs, stored as (in, out) like the source (`transposed` in `eggs.json`); packed with one row per output",
    "gpt_neox": "`query_key_value` head by head; sequential or parallel attention and MLP",
    "falcon": "`query_key_value` by key/value head, as in 7B, 40B, 180B and RW; ALiBi",
    "mixtral": "experts one by one",
    "qwen2_moe": "as Mixtral, with a shared expert, and blocks without experts",
    "qwen3_moe": "as Mixtral",
    "olmoe": "as Mixtral",
}
_HEAD = """# Model families

<!-- Written by tools/docs/make_pages.py from the families, results/family-table.json and results/families.json. -->

A family is a description of an architecture: where a model type has its decoder blocks, which activation each linear of a
block consumes and which channel space it produces, and the scope of a permutation of those channels (`eggs_ptp/models`).
Embeddings, norms, routers and the output head are never pruned; biases are unchanged; tied tensors stay tied and are
permuted once. A checkpoint that was saved without its head, such as that of GPT-2 on the hub, has other names for the same
tensors; it keeps them.

| model type | models | linears of a block, in the order in which they are pruned | folded spaces | |
|---|---|---|---|---|
"""
_TAIL = """
`residual`: one permutation for the whole model, shared by embeddings, norms, head, all linears that consume the residual
stream and all that produce it. `heads`: one within each key/value head. `mlp`, `shared`, `experts`: one for the inner
channels of a block's MLP, of its shared expert, of each of its experts. With `permutation = "fold"` they are moved into the
weights, and the model computes the same function as before.

**Drift.** Methods that compare with the dense model (`eggs+`) have a linear that adds to the residual stream compensate for
what the stream lacks. If a norm, a gate or a router is between the two (Gemma, OLMo 2, OPT-350m, experts), the linear only
aims at its own dense output.

## Experts

Checkpoints have a matrix for each expert, and pruning works on these matrices, although transformers fuses them when it
loads a model. Every expert is pruned with the tokens that the router sends to it. An expert that receives fewer tokens than
it has inputs (in all calibration windows together, counted with the preceding blocks pruned) is pruned with all tokens of
its layer instead. For each matrix of an expert `eggs.json` has the number of `tokens`, and whether they were `all_tokens`.

- What an expert receives is not compared with the dense model, whose router may have sent a token elsewhere. Methods that
  compare with the dense model correct attention, but not experts.
- A variance within windows (`input_var_within`) treats the tokens of a batch that an expert receives as one window.
- Experts that a checkpoint stores fused (`gate_up_proj` and `down_proj` with three axes) are read as separate matrices, one
  slice at a time, and fused again when a block is written: the output has the names and shapes of its source.
- In a packed model, a layer's experts are separate modules in transformers too; either all of a layer's experts are packed
  or none.

## Without a family

Other decoder-only models can be pruned too: the list of equal modules with the most weights is taken as the blocks, and
every linear in a block is pruned as the only consumer of its input. No permutation can be folded, because nothing is known
about who else uses the channels: permutations that would be folded are stored with the weights instead
(`permutation = "gather"`). `eggs plan`, and `eggs prune` before it starts, report that a family is missing. Routers (linears
in or named `router`, and a `gate` next to `experts`) are not pruned; linears of `experts.N` are taken to receive some tokens
only. Refused with a one-line error: encoder-decoder models, encoders, and vision or audio models; experts that only a family
can identify; blocks in two lists; blocks that cannot run one by one, because they receive something that depends on the
tokens, or an input that is not the output of the block before. A linear that its block never calls as a module, such as
one of Mamba's, has no statistics; the error names it, and `--exclude` leaves it out.

**Causal masks** that old checkpoints of GPT-2, GPT-J and GPT-NeoX (Pythia) store in every block (`attention.bias` with four
axes, of any type, and `masked_bias`, infinite in float16) are copied unchanged.

## How it is tested

On tiny random models of every row, with two blocks, uneven numbers of heads and random norms, biases and embeddings:

- every linear of a block is in the family, and linears that share an input activation see the same activation, and only
  those (`tests/models/test_families.py`);
- random permutations of every space, folded, change no logit by more than 1e-9 in float64, each space alone and all
  together, and unfolding restores the same bits (ibid.);
- blocks that run one by one give the hidden states of transformers, in float32 and from bfloat16
  (`tests/engine/blocks/test_inputs.py`), and the output head gives its logits
  (`tests/engine/blocks/test_output_head.py`);
- models pruned to 2:4 by `eggs+` and folded are verified against the source, load and generate with plain transformers, and
  have the same logits packed as dense (`tests/products/test_every_shape.py`);
- Wanda's masks of experts equal those computed directly from the tokens that transformers routes (ibid.).

For models without a family, the same with BLOOM, GPT-J, GPT-BigCode and Cohere. Of models that others have trained, only
Llama-shaped ones have been pruned here.

## Every architecture, by one command

```
{command}
```

The models of the tests: two blocks, random weights. Each was pruned to 2:4 by `{method}`, verified against its source,
loaded by plain transformers, packed, and loaded packed. *Linears pruned* counts the matrices in the checkpoint's blocks,
without routers. *Difference*: the largest difference between a logit of the packed and of the dense folder, relative to the
largest logit, in float32. *Generates*: number of greedily generated tokens after a prompt from the packed folder, and
whether the dense folder generates the same.

| model | type | family | linears pruned | folded spaces | verified | difference | generates |
|---|---|---|--:|---|---|--:|---|
"""
_MOE = """
## A mixture of experts on the command line

`--keep` stores the models of that table, so that there is one to try:

```
python benchmarks/family_table.py --only mixtral --keep build/families
eggs plan build/families/mixtral/model --calibration README.md --nsamples 8 --seqlen 64
eggs prune build/families/mixtral/model -o build/moe --calibration README.md --nsamples 8 --seqlen 64
eggs verify build/moe --against build/families/mixtral/model
eggs export build/moe --format packed -o build/moe-packed
eggs generate build/moe-packed --prompt "The function returns" --tokens 12
```

The same works for `qwen2_moe`, `qwen3_moe` and `olmoe`. Random weights generate noise; what it shows is that the packed
folder loads and runs.

## Accuracy by family

Siblings of the built-in model, trained on its text with its tokenizer by `training/train_demo.py`, hidden size 64, five
blocks, four heads. The table compares methods on one model, not models with each other: they were not trained equally long,
and a model that has seen little text has little to lose, so the size of an excess says nothing about a family.

| sibling | parameters | steps | tokens seen | dense perplexity | trained by |
|---|--:|--:|--:|--:|---|
"""
_ACCURACY = """
Calibrated on {nsamples} windows of {seqlen} tokens of the built-in calibration text, a new sample for each of three seeds
and the same for all methods; evaluated on the built-in evaluation text. Perplexity: mean and standard deviation (sd) over
the seeds. Excess: ln(perplexity / dense perplexity), mean. `ria_cp` is RIA with channel permutation, folded. If `eggs` and
`ria_cp` have the same numbers, `eggs` chose no diagonal blocks (B = 0), and is then RIA with the same permutation.

"""


def families() -> str:
    """Return the page."""
    config = {"num_local_experts": 1, "num_experts": 1}
    mixtures = [moe_of(SimpleNamespace(**config, model_type=model_type)) for model_type in LAYOUTS]
    known = "".join(_family_row(family) for family in (*FAMILIES.values(), *mixtures))
    record = json.loads((RESULTS / "family-table.json").read_text(encoding="utf-8"))
    tail = _TAIL.format(command=record["command"], method=record["method"])
    return _HEAD + known + tail + "".join(map(_tested_row, record["rows"])) + _MOE + _accuracy()


def _tested_row(row: dict[str, Any]) -> str:
    cells = [
        row["name"],
        f"`{row['model_type']}`",
        "yes" if row["known"] else "no",
        f"{row['pruned']} of {row['linears']}",
        ", ".join(row["folds"]) or "none",
        "; ".join(row["failures"]) or f"{row['checks']} checks",
        f"{row['apart']:.0e}",
        f"{row['new_tokens']}, {'the same' if row['same_tokens'] else 'different'}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _accuracy() -> str:
    """Return the siblings, what each method costs them, and the findings."""
    record = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    tables = tables_of(record)
    siblings = "".join(_sibling_row(name, model) for name, model in record["models"].items())
    seqlen = next(iter(record["models"].values()))["seqlen"]
    parts = [siblings + _ACCURACY.format(nsamples=record["protocol"]["nsamples"], seqlen=seqlen)]
    patterns = list(dict.fromkeys(pattern for _, pattern in tables))
    heads = " | ".join(f"{pattern} perplexity | sd | excess" for pattern in patterns)
    parts.append(f"| sibling | method | {heads} |\n")
    parts.append(f"|---|---|{'--:|' * 3 * len(patterns)}\n")
    for name in record["models"]:
        methods = dict.fromkeys(method for pattern in patterns for method in tables.get((name, pattern), {}))
        for method in methods:
            cells = [cell for pattern in patterns for cell in result_cells(tables[name, pattern].get(method, []))]
            parts.append(f"| {name} | {method} | {' | '.join(cells)} |\n")
    return "".join(parts) + "\n" + findings(tables) + "\n### How it was measured\n\n" + provenance(record)


def _sibling_row(name: str, model: dict[str, Any]) -> str:
    training = model["training"]
    shape = training["shape"]
    size = f"--hidden {shape['hidden_size']} --intermediate {shape['intermediate_size']}"
    size += f" --layers {shape['num_hidden_layers']} --heads {shape['num_attention_heads']}"
    command = (
        f"`python training/train_demo.py --family {training['family']} {size} --steps {training['steps']} "
        f"--out build/siblings/{name}`"
    )
    cells = [
        name,
        f"{training['parameters']:,}",
        f"{training['steps']:,}",
        f"{training['steps'] * training['batch_tokens']:,}",
        f"{model['dense']:.2f}",
        command,
    ]
    return f"| {' | '.join(cells)} |\n"


def result_cells(rows: Rows) -> list[str]:
    """Return mean perplexity, its standard deviation and the mean excess; empty cells without rows."""
    if not rows:
        return ["", "", ""]
    perplexities = [row["perplexity"] for row in rows]
    deviation = f"{statistics.stdev(perplexities):.2f}" if len(perplexities) > 1 else ""
    return [f"{statistics.mean(perplexities):.2f}", deviation, f"{_mean_excess(rows):.3f}"]


def findings(tables: Tables) -> str:
    """Compare each method with the one before it, seed by seed, and count where `eggs+` is best."""
    lines = []
    for method, other in (("ria_cp", "magnitude"), ("eggs", "ria_cp"), ("eggs+", "eggs")):
        verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no difference beyond seed noise": []}
        for (name, pattern), table in tables.items():
            if method not in table or other not in table:
                continue
            other_excess = {row["seed"]: row["excess"] for row in table[other]}
            differences = [
                row["excess"] - other_excess[row["seed"]] for row in table[method] if row["seed"] in other_excess
            ]
            mean = statistics.mean(differences)
            is_clear = len(differences) > 1 and abs(mean) > 2 * statistics.stdev(differences)
            verdict = ("better" if mean < 0 else "worse") if is_clear else "no difference beyond seed noise"
            verdicts[verdict].append(f"{name} {pattern} ({mean:+.3f})")
        text = "; ".join(f"{verdict}: {', '.join(columns)}" for verdict, columns in verdicts.items() if columns)
        if text:
            lines.append(f"- `{method}` against `{other}`, difference of the excess: {text}.\n")
    best = {column: min(table, key=lambda method: _mean_excess(table[method])) for column, table in tables.items()}
    wins = sum(method == "eggs+" for method in best.values())
    text = f"- `eggs+` has the lowest excess in {wins} of {len(best)} columns"
    exceptions = [
        f"{name} {pattern}, where `{method}` has" for (name, pattern), method in best.items() if method != "eggs+"
    ]
    lines.append(f"{text}; not on {', '.join(exceptions)}.\n" if exceptions else f"{text}.\n")
    return (
        "A difference is called clear if its mean over the seeds exceeds twice its standard deviation.\n\n"
        + "".join(lines)
    )


def _mean_excess(rows: Rows) -> float:
    return statistics.mean(row["excess"] for row in rows)


def _family_row(family: Family) -> str:
    paths = [linear.path.replace(".0.", ".*.") for linear in family.linears]
    modules: dict[str, list[str]] = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        modules.setdefault(module, []).append(name)
    linears = ", ".join(
        f"`{module}.`({', '.join(names)})" if module else ", ".join(names) for module, names in modules.items()
    )
    spaces = ", ".join(space.partition("[")[0] for space, scope in family.scope.items() if scope != "fixed")
    notes = _NOTES.get(family.model_type, "")
    return f"| `{family.model_type}` | {_NAMES[family.model_type]} | {linears} | {spaces} | {notes} |\n"
