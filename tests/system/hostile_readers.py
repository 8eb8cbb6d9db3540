"""Hostile files for what looks at models and runs bundles: `inspect`, `verify`, `run`, and samples for an export."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.system.hostile_files import HUGE, Hostile, Make, Payload, field, holds, pickled, zipped
from tests.unit.bundles import make_bundle, onnx_model, tflite_model


def inspected(make: Make, message: str, name: str = "m.tflite") -> Hostile:
    return Hostile(make, f"inspect {name}", 2, message)


def patched(offset: int, kind: str, value: int) -> Make:
    """The toy TFLite file with one number replaced."""
    data = bytearray(tflite_model())
    struct.pack_into(kind, data, offset, value)
    return holds("m.tflite", bytes(data))


def patched_vector(count: int) -> Make:
    """The length of the root's first vector replaced."""
    data = tflite_model()
    (root,) = struct.unpack_from("<I", data)
    (vtable,) = struct.unpack_from("<i", data, root)
    (slot,) = struct.unpack_from("<H", data, root - vtable + 6)  # operator codes
    (vector,) = struct.unpack_from("<I", data, root + slot)
    return patched(root + slot + vector, "<I", count)


def shared_tables(count: int) -> bytes:
    """A model whose `count` graphs are one and the same, with as many operators that are one and the same.

    Read as written it takes count^2 steps.
    """
    # vtable of the model: size, table size, version, codes, graphs
    model = struct.pack("<HHHHH", 10, 8, 0, 0, 4) + b"\0\0"
    graph = struct.pack("<HHHHHH", 12, 8, 0, 0, 0, 4)  # vtable: tensors, inputs, outputs, operators
    operator = struct.pack("<HH", 4, 4)
    head = struct.pack("<I4s", 8 + len(model), b"TFL3")
    at_model = len(head) + len(model)
    at_graphs = at_model + 8
    at_graph_vtable = at_graphs + 4 + 4 * count
    at_graph = at_graph_vtable + len(graph)
    at_operators = at_graph + 8
    at_operator_vtable = at_operators + 4 + 4 * count
    at_operator = at_operator_vtable + len(operator)
    parts = [
        head, model, struct.pack("<iI", len(model), at_graphs - at_model - 4),
        struct.pack("<I", count), *(struct.pack("<I", at_graph - (at_graphs + 4 + 4 * i)) for i in range(count)),
        graph, struct.pack("<iI", len(graph), at_operators - at_graph - 4),
        struct.pack("<I", count), *(struct.pack("<I", at_operator - (at_operators + 4 + 4 * i)) for i in range(count)),
        operator, struct.pack("<i", len(operator)),
    ]  # fmt: skip
    return b"".join(parts)


def fifo(name: str) -> Make:
    return lambda folder: os.mkfifo(folder / name)


def fifo_package(folder: Path) -> None:
    (folder / "m.mlpackage").mkdir()
    os.mkfifo(folder / "m.mlpackage/model.mlmodel")


def says_a_gigabyte(folder: Path) -> None:
    zipped("m.mlpackage", [("a.mlmodel", bytes(1 << 20))], deflate=True)(folder)
    data = bytearray((folder / "m.mlpackage").read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, 1 << 30)
    (folder / "m.mlpackage").write_bytes(bytes(data))


def large_shape() -> bytes:
    """An ONNX tensor of a hundred thousand axes: their product is a number of two megabits."""
    dims = field(1, b"\xff\xff\x7f" * 100_000)
    graph = field(5, dims + field(2, 1) + field(8, "w")) + field(12, field(1, "y"))
    return field(7, graph)


def bundle(change: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> None:
        make_bundle(folder).rename(folder / "toy.edgeml")
        change(folder / "toy.edgeml")

    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def appended(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")

    return change


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_of(shape: str, descr: str = "<f4") -> bytes:
    """A header without data."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def npz(name: str, arrays: Mapping[str, bytes], *, deflate: bool = False) -> Make:
    return zipped(name, [(f"{key}.npy", data) for key, data in arrays.items()], deflate=deflate)


def object_array(folder: Path) -> bytes:
    return npy(np.array([Payload(folder)], dtype=object), allow_pickle=True)


def samples(make: Make) -> Make:
    """A hostile sample file beside a bundle and a model that are in order."""

    def both(folder: Path) -> None:
        make_bundle(folder).rename(folder / "toy.edgeml")
        (folder / "m.onnx").write_bytes(onnx_model())
        make(folder)

    return both


def bad_samples(make: Make, message: str) -> Hostile:
    return Hostile(samples(make), "run toy.edgeml --input s.npz", 2, message)


NOT_SAMPLES: Final[dict[str, tuple[Make, str]]] = {
    "an array of objects": (zipped("s.npz", [("x.npy", object_array)]), "pickled objects and text are not read"),
    "a pickle in the name of samples": (pickled("s.npz"), "cannot be read as .npz"),
    "2^40 elements in a header": (npz("s.npz", {"x": npy_of(f"({HUGE},)")}), "promises more or less than it holds"),
    "a size below nothing": (npz("s.npz", {"x": npy_of("(-4, -4)") + bytes(64)}), "promises more or less than it holds"),
    "a thousand axes": (npz("s.npz", {"x": npy_of("(1," * 1 + "1," * 999 + ")") + bytes(4)}), "at most 32 axes"),
    "a header that is code": (npz("s.npz", {"x": npy_of("__import__('os').system('touch canary')")}), "no npy header"),
    "a header of brackets": (npz("s.npz", {"x": npy_of("(" * 5000)}), "no npy header"),
    "5 GB of zeros": (npz("s.npz", {"x": npy_of("(5000000000,)", "|u1") + bytes(1 << 16)}), "promises more or less"),
    "one name twice": (zipped("s.npz", [("x.npy", npy(np.zeros(4))), ("x.npy", npy(np.ones(4)))]), "of distinct names"),
    "a FIFO for samples": (fifo("s.npz"), "no file"),
}

READERS: Final[dict[str, Hostile]] = {
    "TFLite cut short": inspected(holds("m.tflite", tflite_model()[:300]), "outside the file"),
    "a root behind the file": inspected(patched(0, "<I", 2**31), "outside the file"),
    "a list longer than the file": inspected(patched_vector(2**31), "a list is longer than the file"),
    "a list of as many tables as bytes": inspected(patched_vector(500), "not a TFLite model"),
    "25 million tables in 40 kB": inspected(holds("m.tflite", shared_tables(5_000)), "share their bytes"),
    "an ONNX shape of a hundred thousand axes": inspected(holds("m.onnx", large_shape()), "at most 32 axes", "m.onnx"),
    "an endless device": inspected(holds("x", b""), "no regular file", "/dev/zero"),
    "a FIFO": inspected(fifo("m.onnx"), "no regular file", "m.onnx"),
    "a FIFO in a package": inspected(fifo_package, "neither a bundle nor an .mlpackage", "m.mlpackage"),
    "a package that unpacks to a gigabyte": inspected(
        says_a_gigabyte, "unpacks to too much", "m.mlpackage"
    ),
    "a bundle cut short": Hostile(bundle(cut), "verify toy.edgeml", 3, "size of the packed bundle"),
    "a path outside a bundle": Hostile(bundle(appended("../evil")), "verify toy.edgeml", 3, "size of the packed bundle"),
    "a file too many in a bundle": Hostile(bundle(appended("more")), "verify toy.edgeml", 3, "size of the packed bundle"),
    "a bundle that is a FIFO": Hostile(fifo("toy.edgeml"), "verify toy.edgeml", 3, "neither a regular file nor a folder"),
} | {name: bad_samples(*case) for name, case in NOT_SAMPLES.items()}  # fmt: skip

CALIBRATION: Final[dict[str, Hostile]] = {
    name: Hostile(samples(NOT_SAMPLES[name][0]), "export m.onnx --to onnx --calib s.npz", 2, NOT_SAMPLES[name][1])
    for name in ("an array of objects", "2^40 elements in a header")
}
