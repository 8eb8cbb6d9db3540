"""What several commands are given: a bundle, samples, whether to print JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeml.wire.errors import UsageError


def existing(path: Path) -> Path:
    """A path that was typed and leads somewhere; a misspelt one is no damaged bundle.

    Raises:
        UsageError: nothing is there.
    """
    if not path.exists():
        raise UsageError(f"no file or folder {str(path)!r}", hint="give a .edgeml file or its folder")
    return path


BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: .edgeml or folder.", callback=existing)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
