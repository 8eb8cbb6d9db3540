"""The device's TUF client behind the three verbs of theupdateframework/tuf-conformance (its CLIENT-CLI.md).

    python -m edgeml.runtime.conformance --metadata-dir DIR init ROOT
    python -m edgeml.runtime.conformance --metadata-dir DIR --metadata-url URL refresh
    python -m edgeml.runtime.conformance … --target-name PATH --target-base-url URL --target-dir DIR download

Nothing here decides: metadata goes through `trust.Metadata`, bytes through `fetch.Fetcher`, as in an agent. Exit code 1 says
that the client refused. `scripts/conformance` runs the suite.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final
from urllib.parse import quote

import urllib3

from edgeml.runtime.atomic import move
from edgeml.runtime.fetch import Fetcher, file_digest
from edgeml.runtime.trust import Metadata
from edgeml.wire.errors import EdgemlError, UpdateError

ANCHOR: Final = "anchor"  # the root the client was given; the suite reads the *.json beside it
REFUSED: Final = 1
SUITE_BEGAN_AT: Final = 0.0  # the suite sets the clock back to when its recorded repositories were fresh


def main(arguments: list[str]) -> int:
    chosen = _parse(arguments)
    folder = Path(chosen.metadata_dir)
    try:
        if chosen.verb == "init":
            _init(folder, Path(chosen.root))
            return 0
        with urllib3.PoolManager(retries=False) as pool:
            url = chosen.metadata_url.rstrip("/") + "/"
            metadata = Metadata(folder, url, (folder / ANCHOR).read_bytes(), pool=pool, released_at=SUITE_BEGAN_AT)
            if chosen.verb == "refresh":
                metadata.refresh()
            else:
                _download(metadata, Fetcher(pool), chosen)
    except EdgemlError as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    return 0


def _init(folder: Path, root: Path) -> None:
    shutil.copyfile(root, folder / ANCHOR)
    shutil.copyfile(root, folder / "root.json")


def _download(metadata: Metadata, fetcher: Fetcher, chosen: argparse.Namespace) -> None:
    listing = metadata.refresh()
    for name in chosen.target_name:
        found = listing.find(name)
        if found is None:
            raise UpdateError(f"{name!r} is not in the signed metadata", code="unlisted", retryable=False)
        remote = listing.remote(found, chosen.target_base_url.rstrip("/") + "/")
        file = Path(chosen.target_dir) / quote(name, safe="")
        if not file.exists() or file_digest(file, remote.algorithm) != remote.digest:
            part = file.with_name(f".{remote.digest}.part")
            fetcher.fetch(remote, part)
            move(part, file)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgeml.runtime.conformance", description=__doc__)
    parser.add_argument("--metadata-dir", required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("init").add_argument("root")
    verbs.add_parser("refresh")
    verbs.add_parser("download")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
