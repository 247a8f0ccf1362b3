"""Mask selection from scores. One rule a file."""
