"""Fine-tune a pruned model while its pruned weights stay zero, so that it is still 2:4 and can be packed."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eggs_ptp import evaluate, keep_zeros, pack, prune
from eggs_ptp.demo.builtin import builtin_documents

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples/tuned")
prune("demo", out / "pruned", method="wanda", nsamples=16, overwrite=True)

model = AutoModelForCausalLM.from_pretrained(out / "pruned", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(out / "pruned")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
keep_zeros(model, optimizer)  # after every optimizer.step() pruned weights are exactly zero again

torch.manual_seed(0)
tokens = tokenizer("\n\n".join(builtin_documents("calibration")), return_tensors="pt").input_ids[0]
for _ in range(30):
    starts = torch.randint(len(tokens) - 128, (8,))
    batch = torch.stack([tokens[start : start + 128] for start in starts])
    model(batch, labels=batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model.save_pretrained(out / "tuned")
tokenizer.save_pretrained(out / "tuned")
for name in ("pruned", "tuned"):
    print(f"{name}: perplexity {evaluate(out / name, 'demo', max_windows=20).value:.2f}")

pack(model.eval(), "2:4").save_pretrained(out / "packed")  # refuses a model without a 2:4 matrix
