"""Model families as data, permutation folding, and the adapter to transformers."""
