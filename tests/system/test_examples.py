"""Each example's README is run as it stands: every command of its `sh` blocks, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted((ROOT / "examples").glob("[0-9][0-9]-*/README.md"))


def commands(readme: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(readme: Path, folder: Path) -> None:
    """The commands as a reader runs them from the root of the checkout; what they write goes to `folder`."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert commands(readme), "the README shows no command"
    for command in commands(readme):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first example leaves in out/: the others say that they need it."""
    folder = tmp_path_factory.mktemp("first")
    run(READMES[0], folder)
    return folder / "out"


@pytest.mark.slow
@pytest.mark.xdist_group("examples")
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_every_command_of_the_readme_runs(readme: Path, first: Path, tmp_path: Path) -> None:
    if readme == READMES[0]:
        return  # the fixture ran it
    if "../01-export-and-run/README.md" in readme.read_text():
        shutil.copytree(first, tmp_path / "out")
    run(readme, tmp_path)


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [
        path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
    ]
    missing = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not missing
