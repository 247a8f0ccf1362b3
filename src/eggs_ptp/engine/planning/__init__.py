"""What a run will do to every matrix, what it costs, and whether checkpoint, family and recipe agree."""
