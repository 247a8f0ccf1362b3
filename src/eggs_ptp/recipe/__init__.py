"""Recipes: what is to be pruned, how, and with which calibration text; read from TOML and checked."""
