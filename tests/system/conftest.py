"""What system tests share: a headless Chromium, and pages that fail a test if they ask anybody but loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Where it is; the test is skipped where there is none."""
    program = Path(os.environ.get("EDGEML_CHROMIUM", "/usr/bin/chromium"))
    if not program.exists():
        pytest.skip(f"no browser at {program}: install chromium, or set EDGEML_CHROMIUM")
    return program


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(chromium), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test if a script of it failed, or if it asked for anything that is not on loopback."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("http://127.0.0.1:", "data:")) else problems.append(request.url),
    )
    yield opened
    context.close()
    assert problems == []
