"""Scores: weight and statistics in, one number a weight out, higher = keep. One file a formula family."""
