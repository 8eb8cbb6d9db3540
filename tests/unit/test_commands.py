"""Every command explains itself, and docs/commands.md and the other documents name the options that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeml.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/commands.md").read_text()
SECTIONS = dict(re.findall(r"^## edgeml ([\w ]+)$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
OPTIONS = {name: {"--help", *re.findall(r"--[a-z][a-z-]*", text)} for name, text in SECTIONS.items()}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def test_the_page_of_commands_holds_every_option(tmp_path: Path) -> None:
    """Where this fails, run scripts/commands-table."""
    subprocess.run([sys.executable, ROOT / "scripts/commands-table", tmp_path / "commands.md"], check=True)
    assert (tmp_path / "commands.md").read_text() == PAGE


def test_every_option_has_words() -> None:
    """Where this fails, give the option a `help`."""
    assert [line for line in PAGE.splitlines() if line.startswith("| `") and line.endswith("| |")] == []


@pytest.mark.parametrize("name", SECTIONS)
def test_help_is_plain_text_that_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert {option for option in OPTIONS[name] if option not in said} == set()
    assert "╭" not in said, "boxes waste a terminal's width, and their markup eats what stands in brackets"
    assert "<bool>" not in said, "a flag takes no value"


@pytest.mark.parametrize(("name", "said"), [("exprt", "did you mean 'export'?"), ("fly", "there are export, micro")])
def test_a_command_that_there_is_not_is_told_with_the_nearest(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "run --input x.npz", "bench", "serve", "web", "micro", "inspect"])
def test_a_misspelt_path_is_no_damaged_bundle(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), str(tmp_path / "met.edgeml")])
    assert left.value.code == 2
    assert "no file or folder" in capsys.readouterr().err


def test_every_command_is_on_the_page() -> None:
    assert {name.split()[0] for name in SECTIONS} == set(COMMANDS)


def calls(text: str) -> list[tuple[str, set[str]]]:
    """(command, its options) of every `edgeml …` in code, lines that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    code = [
        line
        for block in re.findall(r"^```.*?\n(.*?)^```", joined, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    code += re.findall(r"`([^`\n]+)`", joined)
    found = []
    for line in code:
        for call in re.findall(r"\bedgeml ((?:[a-z]+ )*[a-z]+.*?)(?=\s#|&|;|\||$)", line):
            words = call.split()
            name = next((" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in SECTIONS), None)
            if name is not None:
                found.append((name, set(re.findall(r"(?<!\S)--[a-z][a-z-]*", call))))
    return found


def test_options_in_the_documents_are_options_of_that_command() -> None:
    called = [(path.name, name, options) for path in DOCUMENTS for name, options in calls(path.read_text())]
    assert len(called) >= 60
    assert [(path, name, options - OPTIONS[name]) for path, name, options in called if options - OPTIONS[name]] == []


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []
    examples = [path.parent.name for path in (ROOT / "examples").glob("*/README.md")]
    assert [name for name in examples if f"examples/{name}" not in index] == []
