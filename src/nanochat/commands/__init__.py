"""Shared by all commands: composition, checks of settings, errors in one line, help."""
