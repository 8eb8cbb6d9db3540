"""The fleet service: which device runs which version, on evidence."""
