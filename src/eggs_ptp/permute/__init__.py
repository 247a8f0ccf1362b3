"""Channel permutations computed from the scores of all linears that share an input activation."""
