"""Weights changed to make up for what was pruned."""
