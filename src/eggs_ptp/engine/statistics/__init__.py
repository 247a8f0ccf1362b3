"""Statistics of activations: requests, forward hooks, and the activations they are taken from."""
