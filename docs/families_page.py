"""The page docs/families.md, from the table of families."""

from types import SimpleNamespace

from eggs_ptp.models.family import Family
from eggs_ptp.models.moe import LAYOUTS, moe_of
from eggs_ptp.models.table import FAMILIES

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

<!-- Written by docs/make_pages.py from the table of families. -->

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
  a slice at a time. The output has them one by one, as `save_pretrained` writes them; transformers loads both.
- Packed, a layer's experts are modules of their own in transformers, too; all or none of a layer's are packed.

## Without a family

Other decoder-only models are pruned, too: the list of equal modules with most weights has the blocks, and every linear
in one is pruned as the only reader of its inputs. No order can be folded, as nothing says who else reads the
channels: what would be folded is kept beside the weights (`orders = "gather"`). `eggs plan`, and `eggs prune` before it
begins, say that a family is missing. Refused, in one line: encoder-decoder models, encoders, and models that see or
hear; experts that only a family tells apart; blocks that cannot be run one by one. A linear that its block never calls
as a module, as one of Mamba's, has no statistics; the error names it, and `--exclude` leaves it out.

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
"""


def families() -> str:
    """The whole page."""
    one = SimpleNamespace(num_local_experts=1, num_experts=1)
    mixtures = [moe_of(SimpleNamespace(**vars(one), model_type=model_type)) for model_type in LAYOUTS]
    return _HEAD + "".join(_row(family) for family in (*FAMILIES.values(), *mixtures)) + _TAIL


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
