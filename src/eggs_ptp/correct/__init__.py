"""Corrections of the target: what the other steps approximate in place of the dense weight."""
