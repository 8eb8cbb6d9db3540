"""Devices that a model is exported for: what suits each, and the two that take more than a model file.

A browser gets a folder with a page that proves itself; a microcontroller gets C sources and the arena they need.
"""
