"""Methods as rows of steps, and how they are applied to matrices."""
