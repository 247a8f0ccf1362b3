"""The built-in model, and its texts from the documentation of the running Python."""
