"""Building blocks without a model: patterns, masks, channel permutations, statistics, keyed randomness; torch only."""
