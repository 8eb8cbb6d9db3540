"""Write the `agent.toml` that a newly enrolled device starts from, and the TUF root beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.fleet.disk import PRIVATE, write_whole
from edgeml.wire.errors import UsageError

ROOT_NAME: Final = "root.json"


@dataclass(frozen=True, slots=True)
class AgentFile:
    """What goes into it. `data` is the device's own folder, relative to the file."""

    device: str
    token: str
    url: str
    broker: str | None
    tenant: str
    tags: Mapping[str, str]
    data: str = "data"

    def text(self) -> str:
        lines = [
            "[device]",
            f"id = {_quoted(self.device)}",
            f"tenant = {_quoted(self.tenant)}",
            f"data = {_quoted(self.data)}",
        ]
        if self.tags:
            lines += ["", "[device.tags]", *(f"{_quoted(key)} = {_quoted(value)}" for key, value in self.tags.items())]
        lines += [
            "",
            "[service]",
            f"url = {_quoted(self.url)}",
            f"token = {_quoted(self.token)}",
            f"root = {_quoted(ROOT_NAME)}",
        ]
        if self.broker is not None:
            lines += ["", "[broker]", f"url = {_quoted(self.broker)}"]
        return "\n".join(lines) + "\n"


def write_agent_file(path: Path, content: AgentFile, root: str) -> None:
    """Write `path`, for its owner alone (it holds the token), and `root.json` beside it.

    Raises:
        UsageError: `path` exists: it may hold the only copy of another token.
        EnvironmentProblem: the disk refused.
    """
    refuse_existing(path)
    beside = path.parent / ROOT_NAME
    if beside.exists() and beside.read_text(errors="replace") != root:
        raise UsageError(f"{str(beside)!r} is the root of another fleet", hint="give the device a folder of its own")
    write_whole(beside, root.encode())
    write_whole(path, content.text().encode(), PRIVATE)


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{str(path)!r} exists; it may hold another device's token", hint="give another path, or move it away")


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
