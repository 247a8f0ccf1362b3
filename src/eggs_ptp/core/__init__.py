"""Floor 0: patterns, masks, channel orders, activation statistics, keyed randomness. torch only."""
