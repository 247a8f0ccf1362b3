"""Products with packed N:M matrices: a linear layer, and a table of backends that can compute it."""
