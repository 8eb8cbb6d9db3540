"""Files made to break or abuse whoever reads them, from the bytes up where that matters.

A payload that runs makes a file called `CANARY` in the folder it stands in.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CANARY: Final = "canary"
HUGE: Final = 2**40
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"

Make = Callable[[Path], object]
"""Writes a case's files into a folder."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """`command` is what follows `edgeml`, in the folder that `make` wrote to; `message` stands in the one line it says."""

    make: Make
    command: str
    code: int
    message: str


class Payload:
    """Makes a canary when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / CANARY

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def holds(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def pickled(name: str) -> Make:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Payload(folder), protocol=2))


def zipped(
    name: str, entries: Sequence[tuple[str, bytes | Callable[[Path], bytes]]], *, deflate: bool = False, link: str = ""
) -> Make:
    """A zip of these entries, in this order and as often as they are named; the one called `link` is a symbolic link."""

    def make(folder: Path) -> None:
        method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(folder / name, "w", method) as archive:
            for inner, content in entries:
                about = zipfile.ZipInfo(inner)
                about.compress_type = method
                about.external_attr = ((stat.S_IFLNK if inner == link else stat.S_IFREG) | 0o644) << 16
                archive.writestr(about, content if isinstance(content, bytes) else content(folder))

    return make


def pickle_of_payload(folder: Path) -> bytes:
    return pickle.dumps(Payload(folder), protocol=2)


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "model.onnx")


def loop_of_links(folder: Path) -> None:
    (folder / "model.onnx").symlink_to(folder / "model.onnx")


def sparse_folder(folder: Path) -> None:
    (folder / "saved").mkdir()
    (folder / "saved/saved_model.pb").write_bytes(b"")
    with (folder / "saved/large").open("wb") as file:
        file.truncate(HUGE)


def linked_folder(folder: Path) -> None:
    (folder / "saved").mkdir()
    (folder / "saved/saved_model.pb").write_bytes(b"")
    (folder / "saved/variables").symlink_to("/etc")


def fifo_folder(folder: Path) -> None:
    (folder / "saved").mkdir()
    (folder / "saved/saved_model.pb").write_bytes(b"")
    os.mkfifo(folder / "saved/assets")


KERAS: Final = [("metadata.json", b'{"keras_version": "3.0.0"}'), ("config.json", b"{}")]
BOMB: Final = b" " * (65 << 20)  # JSON is read whole

PLAIN: Final[dict[str, Hostile]] = {
    "empty onnx": Hostile(holds("m.onnx", b""), "export m.onnx", 2, "is empty"),
    "empty h5": Hostile(holds("m.h5", b""), "export m.h5", 2, "is empty"),
    "empty keras": Hostile(holds("m.keras", b""), "export m.keras", 2, "is empty"),
    "empty pt2": Hostile(holds("m.pt2", b""), "export m.pt2", 2, "is empty"),
    "empty tflite": Hostile(holds("m.tflite", b""), "export m.tflite", 2, "is empty"),
    "noise": Hostile(holds("m.bin", bytes(range(256))), "export m.bin", 2, "is no model known here"),
    "a folder called like a file": Hostile(lambda f: (f / "m.onnx").mkdir(), "export m.onnx", 2, "is not a SavedModel"),
    "a file called like a folder": Hostile(holds("saved", b"x"), "export saved/", 2, "is no model known here"),
    "a FIFO": Hostile(fifo, "export model.onnx", 2, "is no regular file"),
    "an endless device": Hostile(holds("x", b""), "export /dev/zero", 2, "is no regular file"),
    "a file whose reading fails": Hostile(holds("x", b""), "export /proc/self/mem", 2, "cannot be read"),
    "a link to itself": Hostile(loop_of_links, "export model.onnx", 2, "cannot be read: Too many levels"),
    "a name too long": Hostile(holds("x", b""), f"export {'a' * 300}.onnx", 2, "cannot be read: File name too long"),
    "a SavedModel of a terabyte": Hostile(sparse_folder, "export saved", 2, "is too large"),
    "a SavedModel with a link": Hostile(linked_folder, "export saved", 2, "holds a link: 'variables'"),
    "a SavedModel with a FIFO": Hostile(fifo_folder, "export saved", 2, "which is no regular file"),
    "a pickle": Hostile(pickled("m.pkl"), "export m.pkl", 2, "is a pickle"),
    "a joblib": Hostile(pickled("m.joblib"), "export m.joblib", 2, "is a pickle"),
    "a checkpoint of before zips": Hostile(pickled("m.pt"), "export m.pt", 2, "is a pickle"),
    "a checkpoint": Hostile(
        zipped("m.pt", [("m/data.pkl", pickle_of_payload), ("m/version", b"3")]), "export m.pt", 2, "is a pickle"
    ),
    "a zip cut short": Hostile(holds("m.keras", b"PK\x03\x04" + bytes(40)), "export m.keras", 2, "truncated or damaged"),
    "zip-slip in keras": Hostile(
        zipped("m.keras", [*KERAS, ("../../evil", b"x")]), "export m.keras", 2, "a path outside itself"
    ),
    "an absolute path in keras": Hostile(
        zipped("m.keras", [*KERAS, ("/tmp/evil", b"x")]), "export m.keras", 2, "a path outside itself"
    ),
    "zip-slip in pt2": Hostile(
        zipped("m.pt2", [("m/models/model.json", b"{}"), ("m/..\\..\\evil", b"x")]), "export m.pt2", 2, "a path outside itself"
    ),
    "a link in keras": Hostile(
        zipped("m.keras", [*KERAS, ("model.weights.h5", b"/etc/passwd")], link="model.weights.h5"),
        "export m.keras", 2, "holds a link",
    ),
    "config twice in keras": Hostile(
        zipped("m.keras", [*KERAS, ("config.json", b"[]")]), "export m.keras", 2, "holds 'config.json' twice"
    ),
    "a bundle": Hostile(
        zipped("m.edgeml", [("manifest.json", b"{}"), ("manifest.sha256", b"x")]), "export m.edgeml", 2, "exported already"
    ),
    "labels that are no text": Hostile(
        lambda f: [holds("m.onnx", b"\x08\x0a")(f), holds("l.txt", b"\xff\xfe\x00")(f)],
        "export m.onnx --labels l.txt", 2, "is not UTF-8 text",
    ),
}  # fmt: skip


def repeated(size: int, count: int) -> Make:
    """A zip of one deflated run of zeros, and a directory that names it `count` times."""

    def make(folder: Path) -> None:
        zipped("m.keras", [("000000", bytes(size))], deflate=True)(folder)
        data = (folder / "m.keras").read_bytes()
        at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
        records = b"".join(data[at:end].replace(b"000000", f"{index:06}".encode()) for index in range(count))
        told = min(count, 0xFFFF).to_bytes(2, "little")
        sizes = len(records).to_bytes(4, "little") + at.to_bytes(4, "little")
        (folder / "m.keras").write_bytes(data[:at] + records + data[end : end + 8] + told * 2 + sizes + b"\0\0")

    return make


ZIPS: Final[dict[str, Hostile]] = {
    "70,000 names": Hostile(repeated(0, 70_000), "export m.keras", 2, "holds too many files"),
    "16 GB of overlapping entries": Hostile(repeated(1 << 24, 1000), "export m.keras", 2, "unpacks to too much"),
    "a JSON bomb": Hostile(
        zipped("m.keras", [KERAS[0], ("config.json", BOMB)], deflate=True),
        "export m.keras",
        2,
        "'config.json' unpacks to too much",
    ),
    "JSON of a hundred thousand levels": Hostile(
        zipped("m.keras", [KERAS[0], ("config.json", b"[" * 100_000)]), "export m.keras --to onnx", 2, "recursion"
    ),
    "JSON that is no text": Hostile(
        zipped("m.keras", [KERAS[0], ("config.json", b'{"\xff": 1}')]), "export m.keras --to onnx", 2, "cannot be loaded"
    ),
    "JSON that is a list": Hostile(
        zipped("m.keras", [("metadata.json", b"[1]"), ("config.json", b"{}")]),
        "export m.keras --to onnx",
        2,
        "cannot be loaded",
    ),
}


def keras_config(**layer: object) -> bytes:
    config = {"class_name": "Functional", "config": {"layers": [layer]}, "registered_name": None, "module": "keras"}
    return json.dumps(config).encode()
