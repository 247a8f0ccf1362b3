"""One block after another: observe, prune, run again."""
