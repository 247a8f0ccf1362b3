"""Comparisons of methods x patterns x seeds on one model: a grid of runs, stored as records and shown as a table."""
