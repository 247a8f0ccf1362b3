"""Folders on disk: written whole, verified afterwards."""
