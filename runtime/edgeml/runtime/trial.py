"""Runs a new bundle's golden vectors in a child process, so that an engine that crashes or hangs is an error and not an outage.

    python -m edgeml.runtime.trial BUNDLE '{"format": "onnx", …}'        (a `Setup`)

prints nothing and exits 0, or prints one JSON line that names the error.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.isolated import ending
from edgeml.runtime.model import load_as
from edgeml.runtime.setup import Setup
from edgeml.wire import errors
from edgeml.wire.errors import EdgemlError, WorkerError
from edgeml.wire.structs import learn

DIAGNOSIS_CHARACTERS: Final = 400  # of what a dying child wrote


class Verdict(msgspec.Struct, frozen=True):
    error: str
    message: str


def try_bundle(path: Path, setup: Setup, *, timeout_s: float) -> None:
    """Load a bundle in a child and run its golden vectors.

    Raises:
        EdgemlError: what the child met, in its own class; WorkerError if the child died or took too long.
    """
    command = [sys.executable, "-m", "edgeml.runtime.trial", str(path), msgspec.json.encode(setup).decode()]
    try:
        child = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"the self-test did not end within {timeout_s:.0f} s") from error
    except OSError as error:
        raise WorkerError(f"the self-test could not be started: {error}") from error
    if child.returncode == 0:
        return
    raise _error_of(child)


def _error_of(child: subprocess.CompletedProcess[bytes]) -> EdgemlError:
    try:
        verdict = msgspec.json.decode(child.stdout.splitlines()[-1], type=Verdict)
    except (IndexError, msgspec.MsgspecError, UnicodeDecodeError):
        wrote = child.stderr.decode(errors="replace").strip()[-DIAGNOSIS_CHARACTERS:]
        return WorkerError(f"the self-test's process died ({ending(child.returncode)}) {wrote}".strip())
    kind = vars(errors).get(verdict.error)
    if isinstance(kind, type) and issubclass(kind, EdgemlError) and kind.__init__ is EdgemlError.__init__:
        return kind(verdict.message)
    return errors.UnsupportedError(verdict.message) if verdict.error == "MissingExtraError" else WorkerError(verdict.message)


def main(arguments: list[str]) -> int:
    setup = msgspec.json.decode(arguments[1], type=Setup)
    try:
        with open_bundle(arguments[0]) as bundle:
            load_as(bundle, setup).close()
    except EdgemlError as error:
        print(msgspec.json.encode(Verdict(type(error).__name__, str(error))).decode(), flush=True)
        return 1
    return 0


learn(__name__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
