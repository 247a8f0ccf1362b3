"""Scores: weight and activation statistics in, one number per weight out, higher = keep. One formula a file."""
