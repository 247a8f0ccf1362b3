"""Prune the built-in model to 2:4, export it without its zeros, load it with transformers, and generate text."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import eggs_ptp  # registers the packed format with transformers
from eggs_ptp.checkpoint.packed import export

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples/serve")

# A plain Hugging Face folder with zeros. For your own model also pass calibration="text.jsonl".
record = eggs_ptp.prune("demo", out / "pruned", pattern="2:4", nsamples=8, overwrite=True)
print(f"{len(record.matrices)} matrices pruned in {record.seconds:.1f} s")

# The same model at 56 % of the size (16-bit types): kept values and one bit per weight.
export(out / "pruned", out / "packed", "packed", overwrite=True)

model = AutoModelForCausalLM.from_pretrained(out / "packed")
tokenizer = AutoTokenizer.from_pretrained(out / "packed")
inputs = tokenizer("If the argument", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True))
