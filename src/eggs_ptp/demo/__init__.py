"""The built-in model and the text it reads from the running Python."""
