"""Masks changed after selection."""
