"""The pages that are made from the code say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from edgeml.fleet.rollout import ALLOWED, Phase

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_manifest_holds_every_field(tmp_path: Path) -> None:
    """Where this fails, run scripts/manifest-table."""
    subprocess.run([sys.executable, ROOT / "scripts/manifest-table", tmp_path / "manifest.md"], check=True)
    assert (tmp_path / "manifest.md").read_text() == (ROOT / "docs/manifest.md").read_text()


def test_every_field_of_the_manifest_has_words() -> None:
    """Where this fails, put a comment behind the field, or words into scripts/manifest-table."""
    assert [line for line in (ROOT / "docs/manifest.md").read_text().splitlines() if line.endswith("|  |")] == []


INT8 = (ROOT / "docs/int8.md").read_text()
MESSAGES = re.findall(r"^\| `(.+?)` \| ", INT8, flags=re.MULTILINE)
LEAST_LETTERS = 5  # of a piece between two names or numbers; shorter ones are found anywhere


def test_the_guide_to_int8_explains_what_the_program_says() -> None:
    """A message there is pieces of the program's own text, in order, with `…` for what is filled in."""
    files = sorted(path for part in ("exporter", "runtime") for path in (ROOT / part).rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", "\n".join(path.read_text() for path in files))  # strings written in several pieces
    pieces = [piece.strip() for message in MESSAGES for piece in message.split("…") if len(piece.strip()) >= LEAST_LETTERS]
    assert len(MESSAGES) >= 20
    assert [piece for piece in pieces if piece not in source] == []


def test_the_guide_to_int8_names_options_that_exist() -> None:
    source = (ROOT / "exporter/edgeml/exporter/cli.py").read_text().replace("_", "-")
    options = {option.removeprefix("--") for option in re.findall(r"`(?:[^`]* )?(--[a-z-]+)", INT8)}
    assert len(options) >= 4
    assert [option for option in options if not re.search(rf"\b{option}\b", source)] == []


FLEET = (ROOT / "docs/fleet.md").read_text()


def test_the_page_of_the_fleet_says_which_command_is_for_which_phase() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ?(.*?) ?\|$", FLEET, flags=re.MULTILINE)
    told = {phase: set(re.findall(r"`(\w+)`", commands)) for phase, commands in rows if phase in get_args(Phase)}
    assert told == {
        phase: {command for command, phases in ALLOWED.items() if phase in phases and command != "start"}
        for phase in get_args(Phase)
    }


def test_what_the_page_of_the_fleet_explains_is_what_the_service_says() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "fleet/edgeml/fleet").rglob("*.py")))
    trouble = FLEET.partition("## When something is wrong")[2]
    said = re.findall(r"^\| `(.+?)` \|", trouble, flags=re.MULTILINE)
    assert len(said) >= 6
    assert [message for message in said if message not in source] == []


def test_tests_scripts_and_benchmarks_that_documents_name_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"\b(?:tests/[\w/]+\.py|scripts/[\w-]+|(?:benchmarks|examples)(?:\.\w+)+)\b", page.read_text())
    }
    paths = {name: name if "/" in name else name.replace(".", "/") for name in named}
    assert len(paths) >= 30
    assert [name for name, path in paths.items() if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()] == []
