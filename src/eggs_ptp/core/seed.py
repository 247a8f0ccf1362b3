"""Randomness keyed by name, so that skipping, reordering or resuming work cannot change a result."""

import hashlib

import torch


def generator_for(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on (seed, name) alone.

    The first 8 bytes of SHA-256 of `"seed:name"` seed it; the same on every machine.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
