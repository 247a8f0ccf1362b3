"""Model families as data, and the one door to transformers."""
