"""One decoder block on its own: its inputs, its weights in memory, its forward pass."""
