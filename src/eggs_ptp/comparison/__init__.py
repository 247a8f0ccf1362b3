"""Methods x patterns x seeds on one model: a grid of runs, kept as records, shown as a table."""
