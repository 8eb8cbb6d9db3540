"""Hostile Keras, SavedModel and torch files: code in an architecture, links in weights, graphs that write files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from tests.system.hostile_files import CANARY, HDF5_MAGIC, HUGE, Hostile, Make, field, holds, pickle_of_payload, zipped

ONLY: Final = "--to onnx"  # one engine to import beside


def layer(kind: str, **config: object) -> dict[str, object]:
    return {"class_name": kind, "config": config, "registered_name": None, "module": "keras.layers"}


def model(*layers: object) -> bytes:
    return json.dumps(layer("Functional", name="m", layers=layers)).encode()


LAMBDA: Final = layer("Lambda", name="evil", function={"class_name": "__lambda__", "config": {"code": "4wEAAAAA"}})
WRITE_FILE: Final = layer("TFOpLambda", name="op", function="io.write_file")


def keras(config: bytes, *more: tuple[str, Any]) -> Make:
    return zipped("m.keras", [("metadata.json", b'{"keras_version": "3.0.0"}'), ("config.json", config), *more])


def h5(change: Callable[[Any], object], config: bytes = model()) -> Make:
    def make(folder: Path) -> None:
        with h5py.File(folder / "m.h5", "w") as file:
            file.attrs["model_config"] = np.bytes_(config)
            file.attrs["keras_version"] = "2.4.0"
            change(file)

    return make


def h5_bytes(change: Callable[[Any], object]) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        h5(change)(folder)
        data = (folder / "m.h5").read_bytes()
        (folder / "m.h5").unlink()
        return data

    return content


def link(file: Any) -> None:
    file["model_weights"] = h5py.ExternalLink("/etc/passwd", "/")


def external_bytes(file: Any) -> None:
    file.create_dataset("kernel", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("kernel", layout)


def unwritten(file: Any) -> None:
    file.create_dataset("kernel", (HUGE,), "f4", chunks=(1024,))


def nothing(file: Any) -> None:
    file.create_group("model_weights")


def node(operator: str) -> bytes:
    return field(1, "n") + field(2, operator)


def saved(*parts: bytes) -> Make:
    """A SavedModel of one MetaGraphDef."""

    def make(folder: Path) -> None:
        (folder / "saved").mkdir()
        (folder / "saved/saved_model.pb").write_bytes(field(1, 1) + field(2, b"".join(parts)))

    return make


def in_function(operator: str) -> bytes:
    return field(2, field(2, field(1, field(3, node(operator)))))


def pt2(program: object, *more: tuple[str, Any]) -> Make:
    return zipped("m.pt2", [("m/models/model.json", json.dumps(program).encode()), *more])


def call(target: str) -> dict[str, object]:
    argument = {"name": "0", "arg": {"as_string": f"touch {CANARY}"}, "kind": 1}
    return {"graph_module": {"graph": {"nodes": [{"target": target, "inputs": [argument], "outputs": [], "metadata": {}}]}}}


KERAS: Final[dict[str, Hostile]] = {
    "a Lambda in keras": Hostile(keras(model(LAMBDA)), f"export m.keras {ONLY}", 2, "layer 'evil' is a Lambda"),
    "a Lambda in a layer in a layer": Hostile(
        keras(model(layer("TimeDistributed", layer=layer("Sequential", layers=[LAMBDA])))),
        f"export m.keras {ONLY}", 2, "layer 'evil' is a Lambda",
    ),
    "a Lambda in h5": Hostile(h5(nothing, model(LAMBDA)), f"export m.h5 {ONLY}", 2, "layer 'evil' is a Lambda"),
    "a layer that writes files": Hostile(h5(nothing, model(WRITE_FILE)), f"export m.h5 {ONLY}", 2, "calls 'io.write_file'"),
    "a link to another file": Hostile(h5(link), f"export m.h5 {ONLY}", 2, "is a link to the file '/etc/passwd'"),
    "weights in another file": Hostile(h5(external_bytes), f"export m.h5 {ONLY}", 2, "'kernel' is kept in another file"),
    "weights mapped from another file": Hostile(h5(virtual), f"export m.h5 {ONLY}", 2, "'kernel' is kept in another file"),
    "2^40 weights that were never written": Hostile(
        h5(unwritten), f"export m.h5 {ONLY}", 2, "expected at most 4294967296 bytes"
    ),
    "a link in the weights of keras": Hostile(
        keras(model(), ("model.weights.h5", h5_bytes(link))), f"export m.keras {ONLY}", 2, "is a link to the file"
    ),
    "no architecture": Hostile(
        h5(lambda f: f.attrs.pop("model_config")), f"export m.h5 {ONLY}", 2, "holds weights without an architecture"
    ),
    "an architecture that is no JSON": Hostile(h5(nothing, b"\xff\xfe{"), f"export m.h5 {ONLY}", 2, "cannot be loaded"),
    "an architecture without a bottom": Hostile(h5(nothing, b"[" * 50_000), f"export m.h5 {ONLY}", 2, "cannot be loaded"),
    "HDF5 in name only": Hostile(holds("m.h5", HDF5_MAGIC + bytes(500)), f"export m.h5 {ONLY}", 2, "cannot be loaded"),
}  # fmt: skip

SAVED: Final[dict[str, Hostile]] = {
    "a graph that writes files": Hostile(
        saved(field(2, field(1, node("WriteFile")))), f"export saved {ONLY}", 2, "'WriteFile' reads files or runs code"
    ),
    "an initializer that runs Python": Hostile(
        saved(in_function("EagerPyFunc")), f"export saved {ONLY}", 2, "'EagerPyFunc' reads files or runs code"
    ),
    "an asset outside the folder": Hostile(
        saved(field(6, field(2, "../../../etc/passwd"))), f"export saved {ONLY}", 2, "lies outside the SavedModel"
    ),
    "an asset from the root": Hostile(
        saved(field(6, field(2, "/etc/passwd"))), f"export saved {ONLY}", 2, "lies outside the SavedModel"
    ),
    "a graph cut short": Hostile(saved(b"\x12\xff\xff\x03"), f"export saved {ONLY}", 2, "cut off"),
}

TORCH: Final[dict[str, Hostile]] = {
    "a compiled library": Hostile(
        pt2({}, ("m/data/aotinductor/model/model.so", b"\x7fELF")), f"export m.pt2 {ONLY}", 2, "holds the compiled library"
    ),
    "a call of the system": Hostile(pt2(call("torch.os.system")), f"export m.pt2 {ONLY}", 2, "a call of 'torch.os.system'"),
    "a library to load": Hostile(pt2(call("torch.ops.load_library")), f"export m.pt2 {ONLY}", 2, "a call of"),
    "an operator that maps a file": Hostile(
        pt2(call("torch.ops.aten.from_file.default")), f"export m.pt2 {ONLY}", 2, "a call of"
    ),
    "a method by its name": Hostile(pt2(call("_operator.methodcaller")), f"export m.pt2 {ONLY}", 2, "a call of"),
    "an expression that is code": Hostile(
        pt2({"sizes": [{"as_expr": {"expr_str": "eval(chr(49))"}}]}), f"export m.pt2 {ONLY}", 2, "the expression 'eval"
    ),
    "a pickled constant": Hostile(
        pt2({}, ("m/data/constants/model_constants_config.json", b'{"config": {"c": {"path_name": "opaque_obj_0"}}}'),
            ("m/data/constants/opaque_obj_0", pickle_of_payload)),
        f"export m.pt2 {ONLY}", 2, "the pickle 'opaque_obj_0'",
    ),
    "a program without a bottom": Hostile(
        zipped("m.pt2", [("m/models/model.json", b"[" * 50_000)]), f"export m.pt2 {ONLY}", 2, "cannot be loaded"
    ),
}  # fmt: skip
