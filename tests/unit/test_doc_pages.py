"""The pages that are made from the code say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_manifest_holds_every_field(tmp_path: Path) -> None:
    """Where this fails, run scripts/manifest-table."""
    subprocess.run([sys.executable, ROOT / "scripts/manifest-table", tmp_path / "manifest.md"], check=True)
    assert (tmp_path / "manifest.md").read_text() == (ROOT / "docs/manifest.md").read_text()


def test_every_field_of_the_manifest_has_words() -> None:
    """Where this fails, put a comment behind the field, or words into scripts/manifest-table."""
    assert [line for line in (ROOT / "docs/manifest.md").read_text().splitlines() if line.endswith("|  |")] == []
