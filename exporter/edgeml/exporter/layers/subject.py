"""A model named on the command line: `.onnx`, `.tflite`, `.mlpackage` (folder or packed), or one artifact of a bundle.

`kws.edgeml:onnx:int8` is that artifact; `kws.edgeml` alone stands for its only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.wire.contract import label
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Artifact, Format

SUFFIXES: Final[Mapping[str, Format]] = {".onnx": "onnx", ".tflite": "tflite", ".mlpackage": "coreml"}
BUNDLE: Final = ".edgeml"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's bytes. `artifact` and `golden` (input name -> samples) are of the bundle that it is from, if it is."""

    name: str
    format: Format
    data: bytes
    artifact: Artifact | None = None
    golden: Mapping[str, Array] | None = None


def open_subject(text: str) -> Subject:
    """Read what was named.

    Raises:
        PlanError: no such file, of no known kind, or a bundle without that artifact.
        BundleError: a bundle whose bytes are not what it promises.
    """
    path, wanted = _split(text)
    if not path.exists():
        raise PlanError(f"no file {str(path)!r}")
    if _is_bundle(path):
        with open_bundle(path) as bundle:
            return subject_of(bundle, _choose(bundle, wanted, path), path.name)
    if wanted:
        raise PlanError(f"{path.name!r} is one model, not a bundle", expected="no ':' after it", got=repr(":".join(wanted)))
    format_ = SUFFIXES.get(path.suffix.lower())
    if format_ is None:
        raise PlanError(f"{path.name!r}", expected="a bundle, .onnx, .tflite or .mlpackage", got=path.suffix or "no suffix")
    return Subject(path.name, format_, _read(path, format_))


def subject_of(bundle: Bundle, artifact: Artifact, name: str) -> Subject:
    golden = {tensor.name: bundle.tensor(tensor) for tensor in bundle.manifest.golden_inputs}
    return Subject(f"{name}:{label(artifact)}", artifact.format, bundle.blob(artifact.sha256), artifact, golden or None)


def _split(text: str) -> tuple[Path, tuple[str, ...]]:
    """The path, and the words behind it that name an artifact."""
    words = text.split(":")
    for length in range(len(words), 0, -1):
        path = Path(":".join(words[:length]))
        if path.exists():
            return path, tuple(words[length:])
    return Path(text), ()


def _is_bundle(path: Path) -> bool:
    return path.suffix == BUNDLE or (path.is_dir() and (path / "manifest.json").is_file() and path.suffix != ".mlpackage")


def _choose(bundle: Bundle, wanted: tuple[str, ...], path: Path) -> Artifact:
    found = [one for one in bundle.manifest.artifacts if all(word in {one.format, one.precision} for word in wanted)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{path.name}:{label(one)}" for one in bundle.manifest.artifacts)
    raise PlanError(f"which artifact of {path.name!r}", expected=f"one of {names}", got=":".join(wanted) or "the bundle alone")


def _read(path: Path, format_: Format) -> bytes:
    if format_ == "coreml" and path.is_dir():
        from edgeml.exporter.mil.package import pack_mlpackage

        return pack_mlpackage(path)
    if path.is_dir():
        raise PlanError(f"{path.name!r} is a folder")
    return path.read_bytes()


def open_explained(text: str) -> list[tuple[Subject, Subject | None]]:
    """A model, or each artifact of a bundle, with the fp32 artifact of the same format (else any) to compare it with.

    Raises:
        PlanError, BundleError: as `open_subject`.
    """
    path, wanted = _split(text)
    if not path.exists() or not _is_bundle(path):
        return [(open_subject(text), None)]
    with open_bundle(path) as bundle:
        chosen = [one for one in bundle.manifest.artifacts if all(word in {one.format, one.precision} for word in wanted)]
        if not chosen:
            chosen = [_choose(bundle, wanted, path)]
        whole = [one for one in bundle.manifest.artifacts if one.precision == "fp32"]
        pairs = []
        for one in chosen:
            against = next((other for other in whole if other.format == one.format), whole[0] if whole else None)
            pairs.append((subject_of(bundle, one, path.name), subject_of(bundle, against, path.name) if against else None))
    return pairs
