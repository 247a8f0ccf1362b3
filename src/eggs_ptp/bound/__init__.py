"""What no N:M mask can do better than: lower bounds on the output error of one layer."""
