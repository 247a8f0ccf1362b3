"""Checkpoint folders: written atomically, verified afterwards, packed and unpacked."""
