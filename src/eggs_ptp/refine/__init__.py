"""Changes of a mask after selection. One method a file."""
