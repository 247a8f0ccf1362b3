"""Research tools: diagnosis of pruned models, lower bounds, graph measures, and reproduction of the papers' tables."""
