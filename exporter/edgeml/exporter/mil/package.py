"""A Core ML model as one bytes object: the canonical zip of its `.mlpackage` folder.

    Manifest.json                               which file is the model; its identifiers are derived from paths here
    Data/com.apple.CoreML/model.mlmodel         the program and its description
    Data/com.apple.CoreML/weights/weight.bin    large constants

`pack_mlpackage` writes the same bytes for the same conversion: identifiers, library versions and dates are left out and inner
values are named by position. Reading is a trust boundary: names, sizes and the packing itself are checked before
anything is written or parsed.
"""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgeml.exporter.mil.names import rename
from edgeml.exporter.mil.schema import parse_model
from edgeml.wire.canonical import ZIP_LIMIT, ZipEntry, directory, header_size, local_header, zip_size
from edgeml.wire.errors import ModelError

MODEL: Final = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS: Final = "Data/com.apple.CoreML/weights/"
MANIFEST: Final = "Manifest.json"
_FILES_LIMIT: Final = 64  # a package has three; several weight files are possible
_NAME_LIMIT: Final = 200
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_SPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's name space for URLs
_TOOLS: Final = "com.github.apple."  # metadata keys that coremltools writes about itself


def pack_mlpackage(folder: Path, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> bytes:
    """The canonical bytes of the package in `folder`; `inputs` and `outputs` rename it in the order of its description.

    Raises:
        ModelError: not a package with an ML program.
    """
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ModelError(f"{path.name!r} in the package is a link", hint="copy the file itself into the package")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return pack_files(files, inputs, outputs)


def pack_files(files: Mapping[str, bytes], inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> bytes:
    """The canonical bytes of a package given as {name: content}, normalised."""
    kept = {name: data for name, data in files.items() if name == MODEL or name.startswith(WEIGHTS)}
    if MODEL not in kept:
        raise ModelError("not an .mlpackage", expected=f"a file {MODEL!r}", got=repr(sorted(files)))
    kept[MODEL] = _normal_model(kept[MODEL], inputs, outputs)
    kept[MANIFEST] = _normal_manifest(has_weights=len(kept) > 1)
    return _zip(kept)


def unpack_files(data: bytes) -> dict[str, bytes]:
    """{name: content} of packed bytes, every name safe to write below a folder.

    Raises:
        ModelError: not a canonical packing of a Core ML package.
    """
    if len(data) > ZIP_LIMIT:
        raise ModelError("Core ML package too large", expected=f"at most {ZIP_LIMIT} bytes", got=str(len(data)))
    files: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\x03\x04":
        if len(files) >= _FILES_LIMIT:
            raise ModelError("Core ML package", expected=f"at most {_FILES_LIMIT} files", got="more")
        name, start, end = _entry(data, offset)
        if name in files:
            raise ModelError(f"{name!r} stands twice in the Core ML package")
        files[name] = data[start:end]
        offset = end
    if MODEL not in files or zip_size((n, len(c)) for n, c in files.items()) != len(data) or _zip(files) != data:
        raise ModelError("not a canonical Core ML package", hint="pack the .mlpackage folder with pack_mlpackage")
    return files


def unpack_mlpackage(data: bytes, folder: Path) -> None:
    """Write the package's files below `folder`, which is created; nothing is written when the packing is wrong.

    Raises:
        ModelError: not a canonical packing of a Core ML package.
    """
    for name, content in unpack_files(data).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _entry(data: bytes, offset: int) -> tuple[str, int, int]:
    """(name, first, last + 1) of the file whose local header stands at `offset`."""
    if offset + _LOCAL.size > len(data):
        raise ModelError("Core ML package is cut short")
    *_, size, name_size, _ = _LOCAL.unpack_from(data, offset)
    raw = data[offset + _LOCAL.size : offset + _LOCAL.size + name_size]
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError("a file name in the Core ML package is not UTF-8") from error
    _check_name(name)
    start = offset + header_size(name)
    if start + size > len(data):
        raise ModelError(f"{name!r} in the Core ML package is cut short")
    return name, start, start + size


def _check_name(name: str) -> None:
    """Only the files a package may have: the model, the manifest, files directly under `weights/`."""
    if name in (MODEL, MANIFEST):
        return
    path = PurePosixPath(name)
    leaf = path.name
    plain = leaf.isascii() and leaf.replace("_", "").replace("-", "").replace(".", "").isalnum() and not leaf.startswith(".")
    if not plain or name != WEIGHTS + leaf or len(name) > _NAME_LIMIT:
        raise ModelError(f"{name!r} does not belong in a Core ML package")


def _zip(files: Mapping[str, bytes]) -> bytes:
    entries = [ZipEntry(name, len(files[name]), zlib.crc32(files[name])) for name in sorted(files)]
    for entry in entries:
        _check_name(entry.name)
    parts = [part for entry in entries for part in (local_header(entry), files[entry.name])]
    return b"".join([*parts, directory(entries)])


def _normal_manifest(*, has_weights: bool) -> bytes:
    def item(name: str, path: str, about: str) -> tuple[str, dict[str, str]]:
        identifier = str(uuid.uuid5(_SPACE, path)).upper()
        return identifier, {"author": "com.apple.CoreML", "description": about, "name": name, "path": path}

    root, model = item("model.mlmodel", "com.apple.CoreML/model.mlmodel", "CoreML Model Specification")
    entries = {root: model}
    if has_weights:
        identifier, weights = item("weights", "com.apple.CoreML/weights", "CoreML Model Weights")
        entries[identifier] = weights
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(content, indent=4, sort_keys=True).encode()


def _normal_model(data: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    model = parse_model(data)
    metadata = model.description.metadata
    user = {key: value for key, value in metadata.userDefined.items() if not key.startswith(_TOOLS)}
    for field in ("author", "versionString", "shortDescription", "userDefined"):
        metadata.ClearField(field)
    metadata.userDefined.update(user)
    model.mlProgram.attributes.pop("buildInfo", None)
    rename(model, inputs, outputs)
    _drop_empty_metadata(model.description)
    return bytes(model.SerializeToString(deterministic=True))


def _drop_empty_metadata(description: Any) -> None:
    if not description.metadata.ByteSize():
        description.ClearField("metadata")
