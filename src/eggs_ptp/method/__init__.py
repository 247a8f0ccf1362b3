"""Methods as rows of steps, and what applies them to a matrix."""
