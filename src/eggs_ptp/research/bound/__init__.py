"""Lower bounds on the output error of N:M masks."""
