"""Updates of the kept weights that compensate for the pruned ones. One method a file."""
