"""Dynamic sparse no training."""
