"""Reports on pruned folders and their records, as one HTML page, Markdown and plots."""
