"""Randomness keyed by name, so that skipping, reordering or resuming work cannot change a result."""

import hashlib

import torch


def generator_for(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator that depends on (seed, name) alone.

    It is seeded with the first 8 bytes of the SHA-256 of `"seed:name"`, the same on every machine.

    Args:
        seed: The seed of the run.
        name: What the numbers are for, such as the name of a matrix.
        device: Device of the generator.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
