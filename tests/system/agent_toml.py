"""The settings that agents in these tests share: one device, in the folder of its file, and its service."""

from __future__ import annotations

from typing import Final

GATE_7: Final = """
[device]
id = "gate-7"
data = "data"
[service]
url = "{url}"
token = "{token}"
root = "root.json"
"""
"""What follows it begins inside `[service]`."""
