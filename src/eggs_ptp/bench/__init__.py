"""How fast packed is beside dense on this machine: products of chosen shapes, and text from a checkpoint."""
