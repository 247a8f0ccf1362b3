"""Masks chosen from scores."""
