"""Tuning of a whole decoder block's weights, after each of its matrices has been pruned."""
