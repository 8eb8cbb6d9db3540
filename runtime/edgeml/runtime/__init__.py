"""The device runtime: load a bundle and run it, or let an agent keep it up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeml.runtime.model import Model, Result, load

if TYPE_CHECKING:
    from edgeml.runtime.agent import Agent

__all__ = ["Agent", "Model", "Result", "load"]


def __getattr__(name: str) -> object:
    # The agent brings the link, the spool and the update client; `load` alone should not pay for them.
    if name == "Agent":
        from edgeml.runtime.agent import Agent

        return Agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
