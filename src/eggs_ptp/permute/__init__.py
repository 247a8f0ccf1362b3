"""Channel orders found from the scores of all readers of an activation."""
