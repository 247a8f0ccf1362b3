"""The command `eggs`, one file a verb."""
