"""What a simulated fleet is told: where its service is, who its devices are, what they see."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.wire.errors import ConfigError
from edgeml.wire.structs import learn

Positive = Annotated[float, msgspec.Meta(gt=0.0)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`swarm.toml`; paths are relative to the file.

    `devices` is a file of JSON lines as `edgeml fleet devices add --bulk` writes it: `id`, `token`, and optionally `tags`,
    `url` and `broker`, which `service` and `broker` here override. `samples` is an `.npz` with one array per input (`x` where
    there is one), samples on the first axis; each device sees them in an order of its own. `runs_per_s` is per device.
    """

    devices: str
    root: str
    data: str
    service: str | None = None
    broker: str | None = None
    protocol: str = "auto"
    samples: str | None = None
    runs_per_s: Positive = 2.0
    window_s: Positive = 60.0
    soak_s: Annotated[float, msgspec.Meta(ge=0.0)] = 300.0
    health_s: Positive = 30.0
    backoff_s: Positive = 30.0
    poll_s: Positive = 900.0
    poll_after_s: Positive = 60.0
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    spool_bytes: int = 1024 * 1024
    folder: str = "."

    def path(self, text: str) -> Path:
        return Path(self.folder) / text


class Identity(msgspec.Struct, frozen=True):
    """One line of the devices file."""

    id: str
    token: str
    tags: dict[str, str] = {}
    url: str | None = None
    broker: str | None = None


def load_settings(path: Path) -> Settings:
    """Read `swarm.toml`.

    Raises:
        ConfigError: unreadable, not TOML, or a key or value that cannot be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert({**table, "folder": str(path.parent)}, Settings)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{str(path)!r}: {error}") from error


def load_identities(path: Path) -> list[Identity]:
    """Read the devices file.

    Raises:
        ConfigError: unreadable, or a line that is not a device.
    """
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"devices {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        return [msgspec.json.decode(line, type=Identity) for line in lines]
    except msgspec.MsgspecError as error:
        raise ConfigError(f"devices {str(path)!r}: {error}", hint='each line is {"id": …, "token": …}') from error


def load_samples(path: Path) -> dict[str, Array]:
    """Read field samples: input name -> (n, ...), labels left out.

    Raises:
        ConfigError: unreadable, or arrays of different lengths.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name != "y"}
    except (OSError, ValueError) as error:
        raise ConfigError(f"samples {str(path)!r} cannot be read: {error}") from error
    lengths = {len(array) for array in found.values() if array.ndim}
    if len(lengths) != 1 or lengths == {0}:
        raise ConfigError(f"samples {str(path)!r}", expected="arrays with the same number of samples", got=str(sorted(lengths)))
    return found


learn(__name__)
