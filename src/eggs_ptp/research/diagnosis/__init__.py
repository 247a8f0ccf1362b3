"""What pruning did to a model: connections, reachability, activations and gradients."""
