"""Smaller numbers in the same model: one file a format."""
