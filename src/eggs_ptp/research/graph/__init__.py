"""Measures of the bipartite graph of a pruning mask, and of the Jacobian of a decoder block."""
