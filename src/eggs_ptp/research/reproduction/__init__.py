"""The papers' tables and figures as data, and their reproduction on any model."""
