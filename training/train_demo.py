"""Train the built-in demo model: a small Llama on English that is already on this machine.

    python training/train_demo.py --steps 8000 --out build/demo-model

Two cores, one seed, no network. The folder that it writes is what the package ships as
`eggs_ptp/demo/model`. `training/README.md` says how the size and the text were chosen.
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

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eggs_ptp.demo.corpus import RUNTIME_SOURCES, documents

PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "pydantic", "typer", "rich", "numba", "jinja2")
VOCABULARY = 2048
CONTEXT = 256
BATCH = 16
PROMPT = "The function returns"
BOS, EOS = "<s>", "</s>"


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()

    train_texts = documents("train", sources=(*RUNTIME_SOURCES, *PACKAGES))
    evaluation_texts = documents("evaluation")
    tokenizer = train_tokenizer(train_texts)
    evaluation = windows(tokenizer("\n\n".join(evaluation_texts))["input_ids"])
    encoded = [np.array(ids[1:], dtype=np.int32) for ids in tokenizer(train_texts)["input_ids"]]
    facts: dict[str, object] = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "batch_tokens": BATCH * CONTEXT,
        "text": {"train_sources": [*RUNTIME_SOURCES, *PACKAGES], "evaluation_sources": list(RUNTIME_SOURCES)},
        "train_characters": sum(map(len, train_texts)),
        "train_tokens": int(sum(map(len, encoded))),
        "evaluation_characters": sum(map(len, evaluation_texts)),
        "evaluation_tokens": evaluation.numel(),
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version(name) for name in (*PACKAGES, "transformers", "tokenizers")},
    }
    model = build(tokenizer)
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps(facts), flush=True)

    best = math.inf
    log: list[dict[str, float]] = []
    optimiser = make_optimiser(model, arguments.learning_rate)
    batches = stream(encoded, tokenizer, arguments.seed)
    running, model_seconds = 0.0, time.perf_counter()
    for step in range(arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * schedule(step, arguments.steps)
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):  # the weights and their updates stay in float32
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        running += loss.item()
        done = step + 1
        if done % arguments.every == 0 or done == arguments.steps:
            count = done % arguments.every or arguments.every
            entry = {
                "step": done,
                "epochs": round(done * BATCH * CONTEXT / int(facts["train_tokens"]), 2),  # type: ignore[call-overload]
                "train_perplexity": round(math.exp(running / count), 3),
                "held_out_perplexity": round(perplexity(model, evaluation), 3),
                "held_out_perplexity_2_4_magnitude": round(pruned_perplexity(model, evaluation), 3),
                "seconds": round(time.perf_counter() - started, 1),
            }
            running = 0.0
            log.append(entry)
            print(json.dumps(entry), flush=True)
            if entry["held_out_perplexity"] < best:  # the best step is kept, should the text be overlearnt
                best = entry["held_out_perplexity"]
                facts["training_seconds"] = round(time.perf_counter() - model_seconds, 1)
                write(model, tokenizer, arguments.out, {**facts, "log": log}, evaluation)
    print(sample(model, tokenizer), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
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
        model_max_length=1_000_000,  # windows are cut by whoever reads the text
    )


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def make_optimiser(model: LlamaForCausalLM, peak: float) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05, "peak": peak},
        {"params": vectors, "weight_decay": 0.0, "peak": peak},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)


def schedule(step: int, steps: int) -> float:
    warm_up = min(300, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def stream(encoded: list[np.ndarray], tokenizer: PreTrainedTokenizerFast, seed: int):  # type: ignore[no-untyped-def]
    """Endless batches: each epoch cuts the text anew, at another offset and with other separators.

    Documents keep their order, so a window sees neighbours from the same source file, as it does when
    the held-out text is read. Half of them are separated by a blank line and half by the special
    tokens, since both are in use when text is packed.
    """
    random = np.random.default_rng(seed)
    newline = tokenizer("\n")["input_ids"][-1]
    separators = (
        np.array([newline, newline], dtype=np.int32),
        np.array([tokenizer.eos_token_id, tokenizer.bos_token_id], dtype=np.int32),
    )
    while True:
        choice = random.integers(0, 2, len(encoded))
        pieces = [piece for ids, which in zip(encoded, choice, strict=True) for piece in (separators[which], ids)]
        tokens = np.concatenate(pieces)
        offset = int(random.integers(0, CONTEXT))
        count = (len(tokens) - offset) // CONTEXT
        rows = tokens[offset : offset + count * CONTEXT].reshape(count, CONTEXT)
        order = random.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[order[start : start + BATCH]].astype(np.int64))


def windows(ids: list[int]) -> torch.Tensor:
    count = len(ids) // CONTEXT
    return torch.tensor(ids[: count * CONTEXT]).view(count, CONTEXT)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    total, count = 0.0, 0
    for batch in rows.split(16):
        logits = model(input_ids=batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total, count = total + losses.item(), count + batch[:, 1:].numel()
    return math.exp(total / count)


@torch.no_grad()
def pruned_perplexity(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """The perplexity with the two largest of every four consecutive inputs kept in each block's linears."""
    layers = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    dense = [layer.weight.detach().clone() for layer in layers]
    for layer in layers:
        groups = layer.weight.view(-1, 4)
        smallest = groups.abs().topk(2, dim=1, largest=False).indices
        groups.scatter_(1, smallest, 0.0)
    pruned = perplexity(model, rows)
    for layer, weight in zip(layers, dense, strict=True):
        layer.weight.copy_(weight)
    return pruned


@torch.no_grad()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> str:
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    draws = torch.Generator().manual_seed(seed)
    for _ in range(60):
        probabilities = torch.softmax(model(input_ids=ids).logits[0, -1].float() / 0.7, dim=-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=draws)[None]], dim=1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def write(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    facts: dict[str, object],
    evaluation: torch.Tensor,
) -> None:
    """Write the folder beside its final place first, so that a reader never sees half of one."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    half.config.use_cache = True
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        max_new_tokens=60,
    )
    half.save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(fresh)
    # The class name that every transformers release knows, where the newest writes its own.
    settings = fresh / "tokenizer_config.json"
    named = {**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(named, indent=2) + "\n")
    half.config.use_cache = False
    rounded = half.float()  # the weights as stored, computed in float32
    facts = {
        **facts,
        "held_out_perplexity": perplexity(rounded, evaluation),
        "held_out_perplexity_2_4_magnitude": pruned_perplexity(rounded, evaluation),
        "held_out_perplexity_bf16_arithmetic": perplexity(rounded.to(torch.bfloat16), evaluation),
        "sample": sample(rounded.float(), tokenizer),
    }
    (fresh / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


if __name__ == "__main__":
    main()
