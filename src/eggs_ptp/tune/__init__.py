"""Weights of a whole block changed, after each of its matrices has been pruned."""
