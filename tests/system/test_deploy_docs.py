"""What docs/devices.md and docs/settings.md promise is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgeml.runtime.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (ROOT / "docs/settings.md").read_text()
TROUBLES = re.findall(r"^\| `(.+?)`(?: at `link`)? \| ", (ROOT / "docs/devices.md").read_text(), flags=re.MULTILINE)
REQUIRED = {
    "device": {"id": "d", "data": "data"},
    "service": {"url": "https://fleet.example", "token": "t", "root": "root.json"},
    "broker": {"url": "mqtts://fleet.example"},
    "fallback": {"url": "https://cloud.example"},
}
TABLES = [
    (name, rows)
    for name, rows in re.findall(r"^## \[(\S+)\]$(.*?)(?=^## |\Z)", SETTINGS, flags=re.MULTILINE | re.DOTALL)
    if "challenger" not in name
]


def written(tables: dict[str, dict[str, str]]) -> str:
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in rows.items())]) for name, rows in tables.items()
    )


@pytest.mark.parametrize(("name", "rows"), TABLES, ids=[name for name, _ in TABLES])
def test_every_default_in_the_table_of_settings_is_the_one_the_agent_takes(name: str, rows: str, tmp_path: Path) -> None:
    """Written out with all its defaults, a table means what it means when it is left to them."""
    told = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", rows, flags=re.MULTILINE))
    plain = {table: {key: f'"{value}"' for key, value in given.items()} for table, given in REQUIRED.items()}
    place = name.replace("NAME", "meter")
    plain.setdefault(place, {})
    full = {table: dict(given) for table, given in plain.items()}
    full[place] |= told
    (tmp_path / "plain.toml").write_text(written(plain))
    (tmp_path / "full.toml").write_text(written(full))
    assert load_config(tmp_path / "full.toml") == load_config(tmp_path / "plain.toml")
    assert tomllib.loads(written(full))[place.split(".")[0]], "the table shows keys"


def test_the_table_of_settings_holds_every_key(tmp_path: Path) -> None:
    """Where this fails, run scripts/settings-table."""
    subprocess.run([sys.executable, ROOT / "scripts/settings-table", tmp_path / "settings.md"], check=True)
    assert (tmp_path / "settings.md").read_text() == SETTINGS


def test_every_message_that_the_page_explains_is_one_the_program_gives() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "runtime/edgeml").rglob("*.py")))
    assert len(TROUBLES) >= 10
    missing = [
        message
        for message in TROUBLES
        for part in message.replace("Permission denied", "").split(" … ")
        if part.strip() not in source
    ]
    assert missing == []
