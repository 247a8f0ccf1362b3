"""Evaluation: perplexity, fidelity to another model, and zero-shot accuracy."""
