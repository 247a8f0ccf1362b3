"""Train the built-in model, or a sibling of another size or family, on English text that is installed on this machine.

    python training/train_demo.py --steps 6000 --out build/demo-model
    python training/train_demo.py --steps 6000 --hidden 64 --intermediate 128 --layers 5 --heads 4 --out build/small
    python training/train_demo.py --steps 6000 --family opt --out build/opt

Two cores, one seed, no network. Without a size or family the folder that it writes is what the package ships as
`eggs_ptp/demo/model`. `training/README.md` explains the choice of size and text.
"""

import argparse
import json
import math
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from eggs_ptp.demo.corpus import RUNTIME_SOURCES, documents
from eggs_ptp.models.load import family_in

PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "pydantic", "typer", "rich", "numba", "jinja2")
VOCABULARY = 1536
CONTEXT = 256
BATCH = 16
PROMPT = "The function returns"
BOS, EOS = "<s>", "</s>"
FAMILIES = ("llama", "opt", "gpt_neox", "gemma2", "mixtral")
BALANCE = 0.01  # weight of the loss that keeps a router from ignoring experts


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)

    train_texts = documents("train", sources=(*RUNTIME_SOURCES, *PACKAGES))
    evaluation_texts = documents("evaluation")
    tokenizer = train_tokenizer(train_texts)
    evaluation = windows(tokenizer("\n\n".join(evaluation_texts))["input_ids"])
    encoded = [np.array(ids[1:], dtype=np.int32) for ids in tokenizer(train_texts)["input_ids"]]
    metadata: dict[str, Any] = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "learning_rate": arguments.learning_rate,
        "batch_tokens": BATCH * CONTEXT,
        "family": arguments.family,
        "shape": shape_of(arguments),
        "text": {"train_sources": [*RUNTIME_SOURCES, *PACKAGES], "evaluation_sources": list(RUNTIME_SOURCES)},
        "train_characters": sum(map(len, train_texts)),
        "train_tokens": int(sum(map(len, encoded))),
        "evaluation_characters": sum(map(len, evaluation_texts)),
        "evaluation_tokens": evaluation.numel(),
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version(name) for name in (*PACKAGES, "transformers", "tokenizers")},
    }
    model = build(tokenizer, metadata["family"], metadata["shape"])
    metadata["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps(metadata), flush=True)

    optimisers, experts = make_optimisers(model, arguments.learning_rate)
    batches = stream(encoded, tokenizer, arguments.seed)
    state = arguments.out.with_name(arguments.out.name + ".state")
    first_step = 0
    earlier_seconds = 0.0
    best_perplexity = math.inf
    log: list[dict[str, float]] = []
    if arguments.resume:
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, values in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        first_step = saved["step"]
        earlier_seconds = saved["seconds"]
        best_perplexity = saved["best"]
        log = saved["log"]
        for _ in range(first_step):  # so that the batches are those of an uninterrupted run
            next(batches)

    loss_sum = 0.0
    loss_count = 0
    start = time.perf_counter() - earlier_seconds
    for step in range(first_step, arguments.steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = arguments.learning_rate * schedule(step, arguments.steps)
        loss = descend(model, next(batches), optimisers, experts)
        loss_sum += loss
        loss_count += 1
        done = step + 1
        if done % arguments.every == 0 or done == arguments.steps:
            entry = {
                "step": done,
                "epochs": round(done * BATCH * CONTEXT / metadata["train_tokens"], 2),
                "train_perplexity": round(math.exp(loss_sum / loss_count), 3),
                "held_out_perplexity": round(perplexity(model, evaluation[::4]), 3),
                "held_out_perplexity_2_4_magnitude": round(pruned_perplexity(model, evaluation[::4]), 3),
                "seconds": round(time.perf_counter() - start, 1),
            }
            loss_sum = 0.0
            loss_count = 0
            log.append(entry)
            print(json.dumps(entry), flush=True)
            if entry["held_out_perplexity"] < best_perplexity:  # keeps the best step, in case of overfitting
                best_perplexity = entry["held_out_perplexity"]
                write(model, tokenizer, metadata, arguments.out)
        if done % 100 == 0:
            saved = {
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "step": done,
                "seconds": time.perf_counter() - start,
                "best": best_perplexity,
                "log": log,
            }
            torch.save(saved, state)
    metadata["seconds"] = round(time.perf_counter() - start, 1)
    metadata["log"] = log
    report(arguments.out, metadata, tokenizer, evaluation)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
    parser.add_argument(
        "--family", choices=FAMILIES, default="llama", help="the architecture; all are trained on the same text"
    )
    parser.add_argument("--hidden", type=int, default=128, help="width of the residual stream")
    parser.add_argument(
        "--intermediate", type=int, default=320, help="width of a gated MLP; other MLPs are 1.5 times as wide"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8, help="query heads; half as many for keys and values")
    parser.add_argument("--resume", action="store_true", help="resume from the state stored next to --out")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    return parser.parse_args()


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A lossless byte-level BPE whose encodings start with the beginning-of-text token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,  # readers of the text divide it into windows
    )


def shape_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the size of the model, as entries of Llama's config."""
    return {
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.intermediate,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "num_key_value_heads": arguments.heads // 2,
    }


def settings_of(family: str, shape: dict[str, int]) -> dict[str, Any]:
    """Return the same size as entries of a family's config, and the settings that the family needs."""
    shared = {key: shape[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    ungated_width = shape["intermediate_size"] * 3 // 2  # two matrices with as many weights as a gated MLP's three
    head_width = shape["hidden_size"] // shape["num_attention_heads"]
    if family == "opt":
        return {**shared, "ffn_dim": ungated_width, "word_embed_proj_dim": shape["hidden_size"], "dropout": 0.0}
    if family == "gpt_neox":
        return {**shared, "intermediate_size": ungated_width}
    if family == "mixtral":  # two of four experts per token, together as wide as the single gated MLP of the others
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": BALANCE}
        return {**shape, **experts, "intermediate_size": shape["intermediate_size"] // 2}
    if family == "gemma2":  # only eager attention applies its logit soft-capping
        return {**shape, "head_dim": head_width, "query_pre_attn_scalar": head_width, "attn_implementation": "eager"}
    return dict(shape)


def build(tokenizer: PreTrainedTokenizerFast, family: str, shape: dict[str, int]) -> PreTrainedModel:
    settings = {"attn_implementation": "sdpa", **settings_of(family, shape)}
    config = AutoConfig.for_model(
        family,
        **settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(config)


def blocks_of(model: PreTrainedModel) -> torch.nn.Module:
    return model.get_submodule(family_in(model, "the model in training").blocks)


Fused = list[tuple[torch.nn.Parameter, list[torch.nn.Parameter]]]


def make_optimisers(model: PreTrainedModel, peak: float) -> tuple[list[torch.optim.Optimizer], Fused]:
    """Return Muon for the matrices of the blocks, and AdamW for the embedding and the norms.

    Also returns the fused experts: Muon sees each expert as a separate matrix that shares the fused parameter's memory,
    and must be given its slice of the gradient.
    """
    inside = list(blocks_of(model).parameters())
    fused = [(p, [torch.nn.Parameter(expert) for expert in p.detach()]) for p in inside if p.ndim == 3]
    matrices = [p for p in inside if p.ndim == 2]
    of_blocks = {id(p) for p in inside if p.ndim > 1}
    others = [p for p in model.parameters() if id(p) not in of_blocks]
    matrices += [expert for _, experts in fused for expert in experts]
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    ], fused


def descend(
    model: PreTrainedModel, batch: torch.Tensor, optimisers: list[torch.optim.Optimizer], experts: Fused
) -> float:
    """Take one step; return the next-token loss, without the loss that balances a router."""
    routed = {"output_router_logits": True} if experts else {}
    with torch.autocast("cpu", torch.bfloat16):  # the weights and their updates stay in float32
        output = model(input_ids=batch, labels=batch, **routed)
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for fused, slices in experts:
        for expert, gradient in zip(slices, fused.grad, strict=True):
            expert.grad = gradient
    for optimiser in optimisers:
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return float(output.loss.detach() - (BALANCE * output.aux_loss.detach() if experts else 0.0))


def schedule(step: int, steps: int) -> float:
    """Return the learning rate factor: warm up, stay constant, and decay to zero over the last two fifths.

    The first part does not depend on the number of steps, so a stopped run can be given another number of steps before
    the decay begins, and is the same as a run with that number from the start.
    """
    decay_start = 0.6 * steps
    return min(1.0, (step + 1) / 200, (steps - step) / (steps - decay_start))


def stream(encoded: list[np.ndarray], tokenizer: PreTrainedTokenizerFast, seed: int):  # type: ignore[no-untyped-def]
    """Yield batches endlessly; each epoch divides the text into windows at another offset and with other separators.

    Documents keep their order, so a window has neighbours from the same source file, as it has in the held-out text.
    Half of them are separated by a blank line and half by the special tokens, as both are used when text is packed.
    """
    rng = np.random.default_rng(seed)
    newline = tokenizer("\n")["input_ids"][-1]
    separators = (
        np.array([newline, newline], dtype=np.int32),
        np.array([tokenizer.eos_token_id, tokenizer.bos_token_id], dtype=np.int32),
    )
    while True:
        choices = rng.integers(0, 2, len(encoded))
        pieces = [piece for ids, choice in zip(encoded, choices, strict=True) for piece in (separators[choice], ids)]
        tokens = np.concatenate(pieces)
        offset = int(rng.integers(0, CONTEXT))
        count = (len(tokens) - offset) // CONTEXT
        rows = tokens[offset : offset + count * CONTEXT].reshape(count, CONTEXT)
        order = rng.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[order[start : start + BATCH]].astype(np.int64))


def windows(ids: list[int]) -> torch.Tensor:
    count = len(ids) // CONTEXT
    return torch.tensor(ids[: count * CONTEXT]).view(count, CONTEXT)


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: torch.Tensor) -> float:
    total, count = 0.0, 0
    for batch in rows.split(16):
        logits = model(input_ids=batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total, count = total + losses.item(), count + batch[:, 1:].numel()
    return math.exp(total / count)


@torch.no_grad()
def pruned_perplexity(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Return the perplexity after 2:4 magnitude pruning of the blocks' linears."""
    # Everything with two or more axes is a linear or fused experts, except routers, which are not pruned.
    weights = [p for name, p in blocks_of(model).named_parameters() if p.ndim > 1 and not name.endswith("gate.weight")]
    dense = [weight.detach().clone() for weight in weights]
    for weight in weights:
        groups = weight.view(-1, 4)
        smallest = groups.abs().topk(2, dim=1, largest=False).indices
        groups.scatter_(1, smallest, 0.0)
    pruned = perplexity(model, rows)
    for weight, dense_weight in zip(weights, dense, strict=True):
        weight.copy_(dense_weight)
    return pruned


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> str:
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        probabilities = torch.softmax(model(input_ids=ids).logits[0, -1].float() / 0.7, dim=-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)[None]], dim=1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, metadata: dict[str, Any], folder: Path) -> None:
    """Write the model folder under a temporary name first, so that it is never incomplete."""
    new_folder = folder.with_name(folder.name + ".new")
    shutil.rmtree(new_folder, ignore_errors=True)
    stored = build(tokenizer, metadata["family"], metadata["shape"])
    stored.load_state_dict(model.state_dict())
    stored = stored.to(torch.bfloat16)
    stored.config.use_cache = True
    stored.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        max_new_tokens=60,
    )
    stored.save_pretrained(new_folder)
    (new_folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(new_folder)
    # The class name that all transformers releases know; the newest writes another one.
    settings = new_folder / "tokenizer_config.json"
    named = {**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(named, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new_folder, folder)


def report(
    folder: Path, metadata: dict[str, Any], tokenizer: PreTrainedTokenizerFast, evaluation: torch.Tensor
) -> None:
    """Measure the stored weights, and write the results to the folder."""
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    metadata["held_out_perplexity"] = round(perplexity(stored, evaluation), 3)
    metadata["held_out_perplexity_2_4_magnitude"] = round(pruned_perplexity(stored, evaluation), 3)
    metadata["sample"] = sample(stored, tokenizer)
    metadata["held_out_perplexity_bf16_arithmetic"] = round(perplexity(stored.to(torch.bfloat16), evaluation), 3)
    (folder / "training.json").write_text(json.dumps(metadata, indent=1) + "\n")
    (folder / "TRAINING.md").write_text(written_log(metadata))
    print(json.dumps({key: value for key, value in metadata.items() if key != "log"}, indent=1), flush=True)


def written_log(metadata: dict[str, Any]) -> str:
    """Return the training log as Markdown."""
    dense = metadata["held_out_perplexity"]
    pruned = metadata["held_out_perplexity_2_4_magnitude"]
    saved = min(metadata["log"], key=lambda entry: entry["held_out_perplexity"])
    tokens = metadata["steps"] * metadata["batch_tokens"]
    rows = "\n".join(
        f"| {entry['step']} | {entry['epochs']:.2f} | {entry['train_perplexity']:.1f} "
        f"| {entry['held_out_perplexity']:.1f} | {entry['held_out_perplexity_2_4_magnitude']:.1f} |"
        for entry in metadata["log"]
    )
    quoted = "\n".join(f"> {line}" for line in metadata["sample"].splitlines())
    shape = metadata["shape"]
    family = "" if metadata["family"] == "llama" else f"--family {metadata['family']} "
    size = (
        f"{family}--hidden {shape['hidden_size']} --intermediate {shape['intermediate_size']} "
        f"--layers {shape['num_hidden_layers']} --heads {shape['num_attention_heads']}"
    )
    return f"""# How this model was trained

Written by `training/train_demo.py --steps {metadata["steps"]} --seed {metadata["seed"]} {size}`;
`training.json` has the same figures.

| | |
|---|---|
| parameters | {metadata["parameters"]:,} |
| training text | {metadata["train_characters"]:,} characters, {metadata["train_tokens"]:,} tokens |
| training sources | {", ".join(metadata["text"]["train_sources"])} |
| held-out text | {metadata["evaluation_characters"]:,} characters, {metadata["evaluation_tokens"]:,} tokens \
(the `evaluation` split of {" and ".join(metadata["text"]["evaluation_sources"])}) |
| tokens seen | {tokens:,} in {metadata["steps"]:,} steps of {metadata["batch_tokens"]:,} \
({tokens / metadata["train_tokens"]:.1f} epochs) |
| saved step | {saved["step"]:,} |
| seed | {metadata["seed"]} |
| seconds | {metadata["seconds"]:,.0f} on {metadata["threads"]} thread(s) of a busy machine, measurements included |
| interpreter | {metadata["interpreter"]} |
| packages | {", ".join(f"{name} {number}" for name, number in metadata["packages"].items())} |

## Held-out perplexity

Documents joined by a blank line, divided into windows of {CONTEXT} tokens, each scored from its second token.

| weights as stored (bfloat16) | perplexity |
|---|---|
| computed in float32 | {dense:.2f} |
| computed in bfloat16 | {metadata["held_out_perplexity_bf16_arithmetic"]:.2f} |
| after 2:4 magnitude pruning of the blocks' linears, in float32 | {pruned:.2f} ({pruned / dense:.2f}x) |

## A sample

Sixty tokens at temperature 0.7 after "{PROMPT}":

{quoted}

## Training log

Held-out figures here are over every fourth window and the unrounded weights.

| step | epochs | training perplexity | held-out | held-out, 2:4 magnitude |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
