"""eggs-ptp: one-shot N:M pruning of Hugging Face causal language models."""
