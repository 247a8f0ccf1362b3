"""Calibrate on a mixture of texts, and see what that does to perplexity on each of them.

Statistics are means over tokens, so what is frequent in the calibration text decides which weights matter.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import pathlib
import random
import sys
import tarfile
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

from eggs_ptp import evaluate, prune

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples/mix")
out.mkdir(parents=True, exist_ok=True)

# Two sources that every Python has: its manual, and code of its standard library.
manual = [text for text in topics.values() if len(text) > 1000]
code = [inspect.getsource(module) for module in (textwrap, pathlib, argparse, ast, dataclasses, tarfile)]
held_out = {"manual": manual[::10], "code": code[:2]}
sources = {"manual": [text for i, text in enumerate(manual) if i % 10], "code": code[2:]}


def mix(share_of_code: float, characters: int = 60_000) -> Path:
    """A JSON-lines file with that share of code: pieces of 2000 characters, shuffled."""
    draw = random.Random(0)
    lines = []
    for name, share in (("manual", 1 - share_of_code), ("code", share_of_code)):
        text = "\n".join(sources[name])
        starts = [draw.randrange(len(text) - 2000) for _ in range(round(share * characters / 2000))]
        lines += [json.dumps({"text": text[start : start + 2000]}) for start in starts]
    draw.shuffle(lines)
    path = out / f"code-{share_of_code}.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


for name, texts in held_out.items():
    (out / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
for share in (0.0, 0.5, 1.0):
    folder = out / f"pruned-{share}"
    prune("demo", folder, method="eggs", calibration=str(mix(share)), nsamples=32, overwrite=True)
    perplexities = [
        f"{name} {evaluate(folder, str(out / f'{name}.txt'), max_windows=20).value:.1f}" for name in held_out
    ]
    print(f"{share:.0%} code: perplexity on {', '.join(perplexities)}")
