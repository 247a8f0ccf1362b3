"""Logits in chunks equal those of one forward pass, for every architecture, and never exist all at once."""

import pytest
import torch
from tiny import FAMILIES, MIXTURES, OTHERS, UNKNOWN

from eggs_ptp.evaluation import logits as logits_module
from eggs_ptp.evaluation.logits import chunk_rows, has_separate_body, logits_in_chunks
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import IGNORED, EvaluationWindows, padded_batches
from eggs_ptp.models.load import load_model


def windows_of(lengths, vocabulary=258):
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]
    scored = torch.tensor([min(7, length - 1) for length in lengths])
    return EvaluationWindows(sequences, scored, "documents", 64, None, sum(lengths), 0)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS, *MIXTURES, *UNKNOWN, "granite"])
def test_chunks_are_the_logits_of_one_pass(tiny, name, monkeypatch):
    model = load_model(tiny(name))
    monkeypatch.setattr(logits_module, "_MOST_ROWS", 5)
    forward = vars(model.get_submodule(model.base_model_prefix)).get("forward")
    assert has_separate_body(model)
    for batch in padded_batches(windows_of([12, 9, 30]), 64):
        rows = (batch.targets != IGNORED).flatten().nonzero().flatten()
        with torch.inference_mode():
            whole = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits.flatten(0, 1)
            chunks = list(logits_in_chunks(model, batch, rows))
        assert torch.equal(torch.cat([chunk for chunk, _ in chunks]), rows)
        assert max(len(logits) for _, logits in chunks) == 5
        torch.testing.assert_close(torch.cat([logits for _, logits in chunks]), whole[rows], rtol=1e-5, atol=1e-5)
    assert vars(model.get_submodule(model.base_model_prefix)).get("forward") is forward


def test_the_head_sees_only_scored_rows(tiny):
    model = load_model(tiny())
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    window_losses(model, windows_of([30, 40, 20]))
    assert sum(seen) == 3 * 7


@pytest.mark.parametrize(
    ("vocabulary", "rows"), [(258, 512), (49152, 512), (128256, 261), (262144, 128), (1 << 30, 16)]
)
def test_rows_of_a_chunk_are_bounded_by_bytes(vocabulary, rows):
    assert chunk_rows(vocabulary) == rows
