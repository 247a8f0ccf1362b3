"""Reports: what pruned folders and their records say, as one HTML page, Markdown and pictures."""
