"""onnxruntime-web's two files for a page: from a folder, the cache, or by npm into the cache. They are not ours to ship."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeml.wire.errors import EnvironmentProblem, UsageError

PACKAGE: Final = "onnxruntime-web"
VERSION: Final = "1.30.0"
INTEGRITY: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The package's sha512, in base64 as npm writes it."""
FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
FILE_LIMIT_BYTES: Final = 64 << 20
NPM_LIMIT_S: Final = 300.0
WAY_OUT: Final = f"give --runtime FOLDER, the package {PACKAGE} {VERSION} or its dist folder, or install npm"


@dataclass(frozen=True, slots=True)
class WebEngine:
    """`version` is empty where the folder does not say it."""

    folder: Path
    version: str


def find_engine(given: Path | None) -> WebEngine:
    """The two files, wherever they are.

    Raises:
        UsageError: the folder that was given has not got the files.
        EnvironmentProblem: they are not in the cache, and npm is not here or cannot fetch them.
    """
    if given is not None:
        places = (given, given / "dist", given / "node_modules" / PACKAGE / "dist")
        found = next((place for place in places if _complete(place)), None)
        if found is None:
            raise UsageError(f"--runtime {str(given)!r}", expected=" and ".join(FILES), got="neither there nor in dist/")
        return WebEngine(found, _version(found.parent) or _version(found))
    cached = _cache() / f"{PACKAGE}-{VERSION}"
    if not _complete(cached):
        _fetch(cached)
    return WebEngine(cached, VERSION)


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _version(folder: Path) -> str:
    try:
        described = msgspec.json.decode((folder / "package.json").read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return ""
    return str(described.get("version", "")) if described.get("name") == PACKAGE else ""


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgeml" / "web"


def _fetch(folder: Path) -> None:
    """By npm, which keeps the user's own registry and proxy; the package's hash is checked here again."""
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentProblem(f"no {PACKAGE} here", hint=WAY_OUT)
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", scratch]
        try:
            ran = subprocess.run(command, capture_output=True, timeout=NPM_LIMIT_S, check=False, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(f"npm did not bring {PACKAGE} in {NPM_LIMIT_S:.0f} s", hint=WAY_OUT) from error
        packed = next(Path(scratch).glob("*.tgz"), None)
        if ran.returncode or packed is None:
            said = ran.stderr.decode("utf-8", "replace").strip().splitlines()
            raise EnvironmentProblem(f"npm did not bring {PACKAGE}: {said[-1] if said else 'no reason given'}", hint=WAY_OUT)
        content = packed.read_bytes()
        found = base64.b64encode(hashlib.sha512(content).digest()).decode()
        if found != INTEGRITY:
            raise EnvironmentProblem(f"{PACKAGE} {VERSION} from npm", expected=f"sha512 {INTEGRITY}", got=found)
        _unpack(packed, folder)


def _unpack(packed: Path, folder: Path) -> None:
    """The two files, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, tarfile.open(packed) as archive:
        for name in FILES:
            member = archive.getmember(f"package/dist/{name}")
            content = archive.extractfile(member)
            if content is None or member.size > FILE_LIMIT_BYTES:
                raise EnvironmentProblem(f"{name} in {PACKAGE} is not a file of a sensible size")
            (Path(scratch) / name).write_bytes(content.read())
        folder.mkdir(exist_ok=True)
        for name in FILES:
            (Path(scratch) / name).replace(folder / name)
