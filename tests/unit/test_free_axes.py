"""`--free`: what may be typed, and axes that are opened in TFLite and Core ML files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeml.exporter.axes import at_another_size
from edgeml.exporter.convert.tflite_axes import with_free_axes
from edgeml.exporter.free import FreeAxis, parse_free, settle_free
from edgeml.exporter.mil.backend import MilBackend
from edgeml.exporter.mil.flexible import input_ends, with_ends_of
from edgeml.exporter.mil.package import MODEL, pack_files, unpack_files
from edgeml.exporter.mil.schema import new_model, parse_model
from edgeml.exporter.parity import bind
from edgeml.exporter.resized import check_stacked, refuse_fixed
from edgeml.exporter.samples import make_samples
from edgeml.exporter.source.model import SourceRef
from edgeml.exporter.source.tflite_graphs import pack_model, schema
from edgeml.runtime.backends import Array, EngineOptions, RawTensor, opener
from edgeml.runtime.backends.coreml import CoreMLBackend
from edgeml.runtime.session import Session
from edgeml.wire.errors import EngineError, ParityError, PlanError, UnsupportedError
from edgeml.wire.manifest import Binding, Signature, TensorSpec

FRAMES = Signature(
    (TensorSpec("x", "float32", ("batch", "frames", 2)),), (TensorSpec("y", "float32", ("batch", "frames", 2)),)
)  # fmt: skip


def test_axes_are_read_with_and_without_ends() -> None:
    assert parse_free(["batch", "frames=4..64,steps"]) == (FreeAxis("batch"), FreeAxis("frames", 4, 64), FreeAxis("steps"))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("batch=8", "expected NAME or NAME=MIN..MAX, got 'batch=8'; for example --free batch=1..8"),
        ("", "expected NAME or NAME=MIN..MAX, got ''"),
        ("batch=0..4", "expected MIN from 1 on, and MAX above it, got 0..4"),
        ("batch=4..4", "expected MIN from 1 on, and MAX above it, got 4..4"),
        ("batch,batch=1..2", "names an axis twice"),
    ],
)
def test_what_is_no_axis_is_refused(told: str, said: str) -> None:
    with pytest.raises(PlanError) as raised:
        parse_free([told])
    assert said in str(raised.value)


def test_an_open_end_is_sixteen_times_the_samples_size() -> None:
    assert settle_free(parse_free(["batch,frames"]), FRAMES, {"frames": 5}) == (
        FreeAxis("batch", 1, 16),
        FreeAxis("frames", 1, 80),
    )


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("time", "the source has no free axis of that name: expected 'batch' or 'frames', got 'time'"),
        ("frames=6..9", "expected ends around the samples' size, 5, got 6..9"),
        ("batch=2..4", "expected ends around one sample a call, 1, got 2..4"),
    ],
)
def test_axes_must_be_the_sources_and_hold_the_samples(told: str, said: str) -> None:
    with pytest.raises(PlanError) as raised:
        settle_free(parse_free([told]), FRAMES, {"frames": 5})
    assert said in str(raised.value)


def test_the_second_size_is_within_the_ends() -> None:
    samples = make_samples({"x": np.zeros((2, 5, 2), np.float32)})
    given, _ = at_another_size(dict, samples, FRAMES, {"frames": 5}, [FreeAxis("frames", 3, 6)])
    assert given["x"].shape == (2, 6, 2)


def reshaping(count: int, *, last: str = "RESHAPE") -> bytes:
    """x (count, 2, 3) times 2, then as (count, 6), written as a converter does that knows one size only."""
    tables = schema()
    shape = np.array([count, 6] if last == "RESHAPE" else [count, 2, 3], np.int32)

    def tensor(name: str, sizes: Sequence[int], buffer: int = 0, kind: int = tables.TensorType.FLOAT32) -> Any:
        made = tables.TensorT()
        made.name, made.shape, made.buffer, made.type = name.encode(), np.array(sizes, np.int32), buffer, kind
        return made

    def operator(code: int, inputs: list[int], outputs: list[int]) -> Any:
        made = tables.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
        return made

    def code(number: int) -> Any:
        made = tables.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode = number, min(number, 127)
        made.version = 1
        return made

    def buffer(values: Array | None) -> Any:
        made = tables.BufferT()
        made.data = None if values is None else np.frombuffer(values.tobytes(), np.uint8)
        return made

    graph, model, kinds = tables.SubGraphT(), tables.ModelT(), tables.BuiltinOperator
    graph.tensors = [
        tensor("x", (count, 2, 3)), tensor("twice", (count, 2, 3)), tensor("y", shape.tolist()),
        tensor("two", (1,), 1), tensor("shape", (len(shape),), 2, tables.TensorType.INT32),
    ]  # fmt: skip
    graph.operators = [operator(0, [0, 3], [1]), operator(1, [1, 4], [2])]
    graph.operators[0].builtinOptions, graph.operators[0].builtinOptionsType = (
        tables.MulOptionsT(),
        tables.BuiltinOptions.MulOptions,
    )
    graph.inputs, graph.outputs = [0], [2]
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [code(kinds.MUL), code(getattr(kinds, last))]
    model.buffers = [buffer(None), buffer(np.array([2], np.float32)), buffer(shape)]
    return pack_model(model)


def ref(*free: FreeAxis) -> SourceRef:
    return SourceRef("net.py", "torch", "make", free=free)


def test_a_shape_that_follows_the_batch_is_left_open() -> None:
    model = with_free_axes(ref(FreeAxis("batch", 1, 8)), lambda _, count: reshaping(count))
    backend = opener("tflite")(model, EngineOptions())
    assert [(raw.name, raw.shape) for raw in (*backend.inputs, *backend.outputs)] == [("x", (None, 2, 3)), ("y", (None, 6))]
    for count in (1, 5, 2):
        x = np.arange(6 * count, dtype=np.float32).reshape(count, 2, 3)
        assert np.array_equal(backend.run([x])[0], 2 * x.reshape(count, 6))


def test_without_free_axes_the_model_is_what_the_converter_wrote() -> None:
    assert with_free_axes(ref(), lambda _, count: reshaping(count)) == reshaping(1)


def test_an_operator_for_one_size_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedError, match=r"operator BROADCAST_TO \('y'\) is made for one size of axis 'batch'; leave 'batch' out"
    ):
        with_free_axes(ref(FreeAxis("batch", 1, 8)), lambda _, count: reshaping(count, last="BROADCAST_TO"))


def test_a_converter_that_makes_another_graph_for_each_size_is_refused() -> None:
    def convert(_: SourceRef, count: int) -> bytes:
        return reshaping(count, last="RESHAPE" if count == 2 else "BROADCAST_TO")

    with pytest.raises(UnsupportedError, match="makes other operators for each size of axis 'batch'"):
        with_free_axes(ref(FreeAxis("batch", 1, 8)), convert)


class Frozen:
    """An engine whose second sample in a call is answered as the first is."""

    engine, version = "test", "1"
    inputs: tuple[RawTensor, ...] = (RawTensor("x", np.dtype("float32"), (None, 2)),)
    outputs: tuple[RawTensor, ...] = (RawTensor("y", np.dtype("float32"), (None, 2)),)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [np.repeat(inputs[0][:1], len(inputs[0]), 0)]

    def close(self) -> None: ...


def test_a_batch_that_is_answered_otherwise_than_its_samples_is_refused() -> None:
    spec = TensorSpec("x", "float32", ("batch", 2))
    signature = Signature((spec,), (TensorSpec("y", "float32", ("batch", 2)),))
    given, got = ((Binding(name, name, 0, "float32", ("batch", 2)),) for name in ("x", "y"))
    samples = make_samples({"x": np.array([[0, 1], [2, 3]], np.float32)})
    with Session(signature, given, got, Frozen()) as session, pytest.raises(ParityError, match="for 2 samples in one call"):
        check_stacked(session, samples, {"y": samples.inputs["x"]}, [FreeAxis("batch", 1, 2)])


def test_an_axis_that_stays_fixed_is_refused_by_name() -> None:
    given = (Binding("x", "x", 0, "float32", (1, "frames", 2)),)
    refuse_fixed(FRAMES, given, [FreeAxis("frames", 1, 8)])
    with pytest.raises(UnsupportedError, match="axis 'batch' cannot be free in this format: the conversion has it at 1"):
        refuse_fixed(FRAMES, given, [FreeAxis("batch", 1, 8)])


def test_the_interpreter_holds_callers_to_a_models_ends_as_core_ml_does() -> None:
    kind = SimpleNamespace(dtype="float32", shape=(None, 2))
    program: Any = SimpleNamespace(inputs=(("x", kind),), outputs=(("y", kind),), run=lambda named: {"y": named["x"]})
    backend = MilBackend(program, {"x": ((1, 4), (2, 2))})
    assert backend.run([np.zeros((4, 2), np.float32)])[0].shape == (4, 2)
    with pytest.raises(EngineError, match="Core ML input 'x': axis 0: expected 1 to 4, got 5"):
        backend.run([np.zeros((5, 2), np.float32)])


def test_core_mls_own_engine_reads_free_axes_from_ranges_and_the_program() -> None:
    spec = new_model()
    given, got = spec.description.input.add(), spec.description.output.add()
    given.name, given.type.multiArrayType.dataType = "x", 65568
    given.type.multiArrayType.shape.extend([1, 2])
    for ends in ((1, 8), (2, 2)):
        given.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=ends[0], upperBound=ends[1])
    got.name, got.type.multiArrayType.dataType = "y", 65568  # of a free shape, so that it has none here
    main = spec.mlProgram.functions["main"]
    main.opset = "CoreML7"
    made = main.block_specializations["CoreML7"].operations.add().outputs.add(name="y")
    made.type.tensorType.dimensions.add().unknown.variadic = False
    made.type.tensorType.dimensions.add().constant.size = 3
    backend = CoreMLBackend(SimpleNamespace(get_spec=lambda: spec), Path(), "9.0")
    assert [(raw.name, raw.shape) for raw in (*backend.inputs, *backend.outputs)] == [("x", (None, 2)), ("y", (None, 3))]


def flexible(least: int, most: int) -> Any:
    """A Core ML model of one input whose first axis has these ends."""
    spec = new_model()
    spec.mlProgram.version = 1
    given = spec.description.input.add()
    given.name, given.type.multiArrayType.dataType = "x", 65568
    given.type.multiArrayType.shape.extend([1, 2])
    given.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=least, upperBound=most)
    given.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=2, upperBound=2)
    return spec


def test_a_smaller_core_ml_model_keeps_the_ends_of_the_one_it_was_made_of() -> None:
    whole, made = (pack_files({MODEL: flexible(1, most).SerializeToString()}) for most in (8, 2))
    kept = parse_model(unpack_files(with_ends_of(made, whole))[MODEL])
    assert input_ends(kept) == {"x": ((1, 8), (2, 2))}


def test_an_output_that_a_free_axis_makes_larger_is_not_taken_for_a_smaller_one() -> None:
    """Of (1, n, 2) for the frames and (1, 2) for their mean, both fit a tensor of (1, any, 2) by their shape alone."""

    class Both:
        engine, version = "test", "1"
        inputs: tuple[RawTensor, ...] = (RawTensor("x", np.dtype("float32"), (1, None, 2)),)
        outputs: tuple[RawTensor, ...] = (
            RawTensor("a", np.dtype("float32"), (1, None, 2)), RawTensor("b", np.dtype("float32"), (1, 2)),
        )  # fmt: skip

        def run(self, inputs: Sequence[Array]) -> list[Array]:
            return [inputs[0] + 1, inputs[0].mean(1)]

        def close(self) -> None: ...

    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    whole, each = TensorSpec("whole", "float32", ("batch", 2)), TensorSpec("each", "float32", ("batch", "frames", 2))
    signature = Signature(FRAMES.inputs, (whole, each))
    _, outputs = bind(Both(), signature, {"x": x}, {"whole": x.mean(1), "each": x + 1})
    assert [(one.name, one.tensor) for one in outputs] == [("whole", "b"), ("each", "a")]
