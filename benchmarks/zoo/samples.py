"""What a zoo model is trained, calibrated and judged on, and where the data files are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Samples:
    """`n` samples: `inputs[name]` is (n, *sample shape), `labels` (n, ...) classes or targets, `None` if nobody knows them.

    `origins` are digests of the recordings and pictures that the samples were made from.
    """

    inputs: dict[str, Array]
    labels: Array | None
    origins: frozenset[str] = field(default_factory=frozenset)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def digests(self) -> set[str]:
        """One digest of each sample's inputs, by content."""
        return {digest(*(values[index] for values in self.inputs.values())) for index in range(len(self))}

    def first(self, count: int) -> Samples:
        labels = None if self.labels is None else self.labels[:count]
        return Samples({name: values[:count] for name, values in self.inputs.items()}, labels, self.origins)

    def write(self, path: Path) -> None:
        """As `edgeml export` reads it."""
        labels = {"y": self.labels} if self.labels is not None else {}
        np.savez(path, **self.inputs, **labels)  # type: ignore[arg-type]  # numpy types the keywords as its own flag


@dataclass(frozen=True, slots=True)
class Splits:
    """`train` is `None` for published models. No recording or picture is in two of them."""

    train: Samples | None
    calibrate: Samples
    evaluate: Samples


def digest(*arrays: Array) -> str:
    found = hashlib.sha256()
    for values in arrays:
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def find(name: str) -> Path | None:
    """The published file or folder `name`: in EDGEML_DATA, EDGEML_MODELS, the models' cache or beside the checkout."""
    named = [Path(os.environ[key]) for key in ("EDGEML_DATA", "EDGEML_MODELS") if os.environ.get(key)]
    shared = ROOT.parent / "shared"
    places = [*named, Path.home() / ".cache" / "edgeml" / "models", shared / "data", shared / "models"]
    return next((place / name for place in places if (place / name).exists()), None)


def need(name: str) -> Path:
    """Raises:
    FileNotFoundError: it is nowhere.
    """
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{name!r} is nowhere here: run scripts/models, or set EDGEML_DATA and EDGEML_MODELS")
    return path
