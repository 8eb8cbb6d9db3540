"""Files that appear whole or not at all, also when the power goes.

The runtime has the like (`runtime/atomic.py`): the services import no runtime, and `wire`, which both share, does no IO.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from edgeml.wire.errors import EnvironmentProblem

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def write_whole(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Put `data` at `path` in one step; what was there before stands until then.

    Raises:
        EnvironmentProblem: the disk refused; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> Path:
    """The folder, made if missing, for its owner alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentProblem(f"cannot use the folder {str(folder)!r}: {error.strerror}") from error
    return folder
