"""Hostile ONNX files: what a checker lets through, what an engine never comes back from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.system.hostile_files import HUGE, Hostile, Make, field
from tests.unit.bundles import onnx_model

FLOAT: Final = TensorProto.FLOAT
WEIGHTS: Final = np.ones((4, 3), np.float32)
Change = Callable[[Any], object]


def valid() -> Any:
    return onnx.load_model_from_string(onnx_model())


def changed(change: Change) -> Make:
    """The toy classifier after a change that no writer makes."""

    def make(folder: Path) -> None:
        model = valid()
        change(model)
        (folder / "m.onnx").write_bytes(model.SerializeToString())

    return make


def graph(nodes: Sequence[Any], constants: Sequence[Any] = (), *, shape: Sequence[Any] = ("n", 4)) -> Make:
    """A model from float `x` to float `y`."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, ["a", "b"])], list(constants),
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return lambda folder: (folder / "m.onnx").write_bytes(model.SerializeToString())


def ints(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def cut(share: float) -> Make:
    data = onnx_model()
    return lambda folder: (folder / "m.onnx").write_bytes(data[: int(len(data) * share)])


def external(location: str, **more: str) -> Make:
    """`w` is said to stand in another file."""

    def make(folder: Path) -> None:
        model = valid()
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            weight.external_data.add(key=key, value=value)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        (folder / "beside").write_bytes(bytes(1000))
        (folder / "link").symlink_to("/etc/passwd")
        os.mkfifo(folder / "fifo")
        (folder / "folder").mkdir()

    return make


def cyclic(model: Any) -> None:
    model.graph.node.add(op_type="Add", input=["later", "score_0"], output=["later2"], name="first")
    model.graph.node.add(op_type="Relu", input=["later2"], output=["later"], name="second")


def promise(name: str, dims: Sequence[int]) -> Change:
    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def empty_promise(model: Any) -> None:
    promise("w", [HUGE])(model)
    next(t for t in model.graph.initializer if t.name == "w").ClearField("raw_data")


def poison(value: float) -> Change:
    def change(model: Any) -> None:
        weights = WEIGHTS.copy()
        weights[1, 2] = value
        next(t for t in model.graph.initializer if t.name == "w").raw_data = weights.tobytes()

    return change


def nested(levels: int) -> Make:
    """Graphs in attributes of nodes of graphs, written from the inside out."""
    inner = b""
    for _ in range(levels):
        inner = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, inner)))
    return lambda folder: (folder / "m.onnx").write_bytes(field(1, 10) + field(7, inner))


def endless(folder: Path) -> None:
    """A loop of 2^62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Sin", ["v"], ["w"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, None)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("w", FLOAT, None)],
    )  # fmt: skip
    on = numpy_helper.from_array(np.ones((), np.bool_), "on0")
    graph([helper.make_node("Loop", ["rounds", "on0", "x"], ["y"], body=body)], [ints("rounds", 2**62), on])(folder)


def growing(folder: Path) -> None:
    """Memory that no shape in the file tells of: the size is computed from the input."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "big"], ["large"]),
        helper.make_node("ConstantOfShape", ["large"], ["filled"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    graph(nodes, [ints("big", 2**10, 2**12)])(folder)


def twice(side: str) -> Change:
    def change(model: Any) -> None:
        values = getattr(model.graph, side)
        values.append(values[0])

    return change


def no_text_bytes(folder: Path) -> None:
    model = valid()
    model.graph.input[0].name = model.graph.node[0].input[0] = "NAME!"
    (folder / "m.onnx").write_bytes(model.SerializeToString().replace(b"NAME!", b"\xff\xfe\xfd\xfc\xfb"))


def sparse(model: Any) -> None:
    made = model.graph.sparse_initializer.add()
    made.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "thin"))
    made.indices.CopyFrom(ints("at", 0))
    made.dims.extend([2**30, 2**10])


def deep_metadata(model: Any) -> None:
    model.metadata_props.add(key="labels", value="[" * 100_000)


def unknown(domain: str, name: str) -> Change:
    def change(model: Any) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = name, domain
        if domain:
            model.opset_import.add(domain=domain, version=1)

    return change


def resized(axes: Sequence[int]) -> Change:
    """The input is of this shape."""

    def change(model: Any) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for axis in axes:
            shape.dim.add().dim_value = axis
        del model.graph.node[:]
        model.graph.node.add(op_type="Flatten", input=["input.1"], output=["score_0"])

    return change


def set_opset(model: Any) -> None:
    model.opset_import[0].version = 9999


def typed(elem: int) -> Change:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.elem_type = elem

    return change


EXPORT: Final = "export m.onnx --to onnx"
ONNX: Final[dict[str, Hostile]] = {
    "cut at a third": Hostile(cut(0.33), EXPORT, 2, "truncated or damaged"),
    "cut before the last byte": Hostile(cut(0.999), EXPORT, 2, "truncated or damaged"),
    "a cycle": Hostile(changed(cyclic), EXPORT, 2, "topologically sorted"),
    "an absolute path": Hostile(external("/etc/passwd"), EXPORT, 2, "lies outside the model's folder"),
    "a path upwards": Hostile(external("../../../etc/passwd"), EXPORT, 2, "lies outside the model's folder"),
    "a symbolic link": Hostile(external("link"), EXPORT, 2, "lies outside the model's folder"),
    "a device": Hostile(external("fifo"), EXPORT, 2, "in a file that is missing"),
    "a folder of data": Hostile(external("folder"), EXPORT, 2, "in a file that is missing"),
    "a path of no name": Hostile(external("be\0side"), EXPORT, 2, "null"),
    "an offset that is no number": Hostile(external("beside", offset="-8"), EXPORT, 2, "expected a number of bytes, got '-8'"),
    "an offset behind the file": Hostile(external("beside", offset="999"), EXPORT, 2, "reaches beyond 'beside'"),
    "a length of a terabyte": Hostile(external("beside", length=str(HUGE)), EXPORT, 2, "expected 48 bytes"),
    "2^40 elements in 48 bytes": Hostile(changed(promise("w", [HUGE])), EXPORT, 2, f"expected {4 * HUGE} bytes, got 48"),
    "2^40 elements in none": Hostile(changed(empty_promise), EXPORT, 2, f"expected {HUGE} values, got 0"),
    "a size below nothing": Hostile(changed(promise("w", [-4, -3])), EXPORT, 2, "negative size"),
    "a hundred axes": Hostile(changed(promise("w", [1] * 100)), EXPORT, 2, "at most 32 axes"),
    "a sparse terabyte": Hostile(changed(sparse), EXPORT, 2, "tensor 'thin' would take"),
    "a constant of 64 GiB": Hostile(
        graph([helper.make_node("ConstantOfShape", ["s"], ["big"]), helper.make_node("Add", ["x", "big"], ["y"])],
              [ints("s", 2**34)]),
        EXPORT, 2, "tensor 'big' would take 68,719,476,736 bytes",
    ),
    "an Expand to 64 GiB": Hostile(
        graph([helper.make_node("Expand", ["x", "s"], ["y"])], [ints("s", 2**34, 1)], shape=(1, 1)), EXPORT, 2, "would take"
    ),
    "an input of 2^40": Hostile(changed(resized([1, HUGE])), EXPORT, 2, "would take"),
    "an input of nothing": Hostile(changed(resized([1, 0])), EXPORT, 5, "input 'input.1' has no elements"),
    "an input of 500 MiB": Hostile(changed(resized([1, 2**27])), EXPORT, 2, "give samples with --eval"),
    "NaN": Hostile(changed(poison(float("nan"))), EXPORT, 2, "weight 'w' holds NaN or infinity in 1 of 12 values"),
    "infinity": Hostile(changed(poison(float("-inf"))), EXPORT, 2, "weight 'w' holds NaN or infinity in 1 of 12 values"),
    "an opset to come": Hostile(changed(set_opset), EXPORT, 5, "the file's opset: expected at most"),
    "no opset": Hostile(changed(lambda m: m.ClearField("opset_import")), EXPORT, 2, "says no opset"),
    "an IR version to come": Hostile(
        changed(lambda m: setattr(m, "ir_version", 999)), EXPORT, 5, "IR version: expected at most"
    ),
    "an unknown domain": Hostile(changed(unknown("com.acme", "Gemm")), EXPORT, 5, "'com.acme:Gemm' of node '' is not defined"),
    "an unknown operator": Hostile(changed(unknown("", "Magic")), EXPORT, 5, "'Magic' of node '' is not defined"),
    "a type of no number": Hostile(changed(typed(99)), EXPORT, 2, "is not a valid ONNX model"),
    "text for an input": Hostile(changed(typed(TensorProto.STRING)), EXPORT, 5, "export the model with numeric tensors only"),
    "graphs in graphs, ten thousand deep": Hostile(nested(10_000), EXPORT, 2, "truncated or damaged"),
    "two inputs of one name": Hostile(changed(twice("input")), EXPORT, 2, "input"),
    "two outputs of one name": Hostile(changed(twice("output")), EXPORT, 2, "two outputs are called 'score_0'"),
    "a name that is no text": Hostile(no_text_bytes, EXPORT, 2, "is not UTF-8"),
    "no end of rounds": Hostile(
        endless, f"{EXPORT} --time-limit 4", 6, "'source.onnx:reference' in the source worker did not finish in 4 s"
    ),
    "memory that no shape tells of": Hostile(growing, f"{EXPORT} --memory-limit 0.5", 6, "took too much memory"),
}  # fmt: skip
