"""Products with packed N:M matrices: a module, and a table of backends that can compute it."""
