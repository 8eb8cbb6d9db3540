"""Programs rather than operations: control flow, lists, states, float16, compressed constants, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeml.exporter.mil.backend import MilBackend, count_operations, load_interpreter, open_mil
from edgeml.exporter.mil.package import MODEL, pack_files, unpack_files
from edgeml.exporter.mil.schema import parse_model
from edgeml.runtime.backends import EngineOptions
from edgeml.wire.errors import EngineError, ModelError, UnsupportedError
from tests.unit.mil_builder import convert, coremltools, forgotten_folders, pack, package, run

X = np.array([[1.0, -2.0, 3.0]], np.float32)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with forgotten_folders():
        yield


RNG = np.random.default_rng(3)


def _changed(model: bytes, change: Any) -> bytes:
    """The package after `change(operations)` of its main block."""
    files = unpack_files(model)
    spec = parse_model(files[MODEL])
    function = spec.mlProgram.functions["main"]
    change(function.block_specializations[function.opset].operations)
    return pack_files(files | {MODEL: spec.SerializeToString()})


def _relu() -> bytes:
    return package(lambda mb, a: mb.relu(x=a), [X])


def test_backend_tells_names_types_and_engine() -> None:
    backend = open_mil(_relu(), EngineOptions())
    assert backend.engine == "mil-interpreter"
    assert [(raw.name, raw.dtype.name, raw.shape) for raw in backend.inputs] == [("x0", "float32", (1, 3))]
    assert [raw.name for raw in backend.outputs] == ["y0"]


def test_unknown_operation_is_refused_by_name_when_loaded() -> None:
    def invent(operations: Any) -> None:
        next(op for op in operations if op.type == "relu").type = "conjure"

    with pytest.raises(UnsupportedError, match="'conjure'"):
        open_mil(_changed(_relu(), invent), EngineOptions())


def test_unknown_input_of_an_operation_is_refused_by_name() -> None:
    def invent(operations: Any) -> None:
        op = next(op for op in operations if op.type == "relu")
        op.inputs["spell"].CopyFrom(op.inputs["x"])

    with pytest.raises(UnsupportedError, match="'spell'"):
        open_mil(_changed(_relu(), invent), EngineOptions())


def test_value_used_before_it_is_computed_is_refused() -> None:
    def swap(operations: Any) -> None:
        operations.reverse()

    with pytest.raises(ModelError, match="before it is computed"):
        open_mil(_changed(_relu(), swap), EngineOptions())


def test_weight_offset_outside_the_file_is_refused() -> None:
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    x = RNG.normal(size=(1, 64)).astype(np.float32)
    model = package(lambda mb, a: mb.linear(x=a, weight=weight), [x])

    def move(operations: Any) -> None:
        for op in operations:
            if op.attributes["val"].blobFileValue.fileName:
                op.attributes["val"].blobFileValue.offset = 1 << 40

    with pytest.raises(ModelError, match="outside"):
        open_mil(_changed(model, move), EngineOptions())


def test_failing_operation_is_named() -> None:
    model = package(lambda mb, a, i: mb.gather(x=a, indices=i, axis=1), [X, np.array([1], np.int32)])
    with pytest.raises(EngineError, match="'gather'"):
        run(model, X, np.array([7], np.int32))


def test_float16_program_rounds_after_every_operation() -> None:
    def build(mb: Any, a: Any) -> Any:
        half = mb.cast(x=a, dtype="fp16")
        return mb.cast(x=mb.sub(x=mb.add(x=half, y=np.float16(2048.0)), y=np.float16(2048.0)), dtype="fp32")

    # 2048 + 1.5 lies between the float16 neighbours 2048 and 2050 and rounds to 2050; 2048 + 0.5 to 2048.
    x = np.array([1.5, 0.5], np.float32)
    assert run(package(build, [x]), x)[0].tolist() == [2.0, 0.0]


def test_float16_overflow_is_infinite() -> None:
    def build(mb: Any, a: Any) -> Any:
        half = mb.cast(x=a, dtype="fp16")
        return mb.cast(x=mb.mul(x=half, y=half), dtype="fp32")

    x = np.array([300.0], np.float32)
    assert np.isinf(run(package(build, [x]), x)[0]).all()


@pytest.mark.parametrize(("value", "expected"), [(2.0, 4.0), (-2.0, 2.0)], ids=["true", "false"])
def test_cond_runs_the_chosen_branch(value: float, expected: float) -> None:
    def build(mb: Any, a: Any) -> Any:
        positive = mb.greater(x=mb.squeeze(x=a), y=0.0)
        return mb.cond(pred=positive, _true_fn=lambda: mb.mul(x=a, y=2.0), _false_fn=lambda: mb.abs(x=a))

    x = np.array([value], np.float32)
    assert run(package(build, [x]), x)[0].tolist() == [expected]


def test_while_loop_repeats_until_its_condition_fails() -> None:
    def build(mb: Any, a: Any) -> Any:
        def more(i: Any, _: Any) -> Any:
            return mb.less(x=i, y=5)

        def step(i: Any, v: Any) -> Any:
            return mb.add(x=i, y=1), mb.mul(x=v, y=2.0)

        return mb.while_loop(_cond=more, _body=step, loop_vars=(0, a))[1]

    assert run(package(build, [X]), X)[0].tolist() == (X * 32).tolist()


def test_lists_collect_what_a_loop_writes() -> None:
    def build(mb: Any, a: Any) -> Any:
        items = mb.make_list(init_length=3, dynamic_length=False, elem_shape=(3,))

        def more(i: Any, _: Any) -> Any:
            return mb.less(x=i, y=3)

        def step(i: Any, ls: Any) -> Any:
            row = mb.mul(x=mb.squeeze(x=a, axes=[0]), y=mb.cast(x=i, dtype="fp32"))
            return mb.add(x=i, y=1), mb.list_write(ls=ls, index=i, value=row)

        _, filled = mb.while_loop(_cond=more, _body=step, loop_vars=(0, items))
        return (
            mb.list_gather(ls=filled, indices=np.array([2, 1], np.int32)),
            mb.list_read(ls=filled, index=1),
            mb.list_length(ls=filled),
        )

    gathered, one, length = run(package(build, [X]), X)
    assert gathered.tolist() == np.concatenate([X * 2, X]).tolist()
    assert one.tolist() == X[0].tolist()
    assert int(length) == 3


def test_list_scatter_writes_several_elements() -> None:
    def build(mb: Any, a: Any) -> Any:
        items = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(3,))
        filled = mb.list_scatter(ls=items, indices=np.array([1, 0], np.int32), value=mb.concat(values=(a, mb.abs(x=a)), axis=0))
        return mb.list_gather(ls=filled, indices=np.array([0, 1], np.int32))

    assert run(package(build, [X]), X)[0].tolist() == np.concatenate([np.abs(X), X]).tolist()


def test_state_lives_from_call_to_call_until_reset() -> None:
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its own name for it
    from coremltools.converters.mil.mil import types

    def total(x: Any, memory: Any) -> Any:
        return mb.coreml_update_state(state=memory, value=mb.add(x=mb.read_state(input=memory), y=x))

    specs = [mb.TensorSpec((3,), dtype=types.fp16), mb.StateTensorSpec((3,), dtype=types.fp16)]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(total)
    model = ct.convert(program, source="milinternal", minimum_deployment_target=ct.target.iOS18,
                       pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True)  # fmt: skip
    interpreter = load_interpreter(pack(model))
    x = np.array([1, 2, 3], np.float16)
    name = interpreter.inputs[0][0]
    first, second = (next(iter(interpreter.run({name: x}).values())).tolist() for _ in range(2))
    interpreter.reset()
    third = next(iter(interpreter.run({name: x}).values())).tolist()
    assert (first, second, third) == ([1, 2, 3], [2, 4, 6], [1, 2, 3])


def _compressed(kind: str) -> tuple[bytes, Any]:
    """A linear layer whose weight coremltools compressed, and its dense float weight as coremltools unpacks it."""
    coremltools()
    from coremltools.optimize import coreml as compress

    weight = RNG.normal(size=(32, 64)).astype(np.float32)
    x = RNG.normal(size=(1, 64)).astype(np.float32)
    target = "iOS18" if kind in ("int4-blocks", "palette-groups") else "iOS16"
    model = convert(lambda mb, a: mb.linear(x=a, weight=weight), [x], target)
    ops: dict[str, Any] = {
        "int8": compress.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=1),
        "uint8": compress.OpLinearQuantizerConfig(mode="linear", dtype="uint8", weight_threshold=1),
        "int4-blocks": compress.OpLinearQuantizerConfig(
            mode="linear", dtype="int4", granularity="per_block", block_size=16, weight_threshold=1
        ),
        "palette": compress.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=1),
        "palette-groups": compress.OpPalettizerConfig(
            mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=8, weight_threshold=1
        ),
        "sparse": compress.OpMagnitudePrunerConfig(target_sparsity=0.75, weight_threshold=1),
    }
    config = compress.OptimizationConfig(global_config=ops[kind])
    if kind.startswith("palette"):
        packed = compress.palettize_weights(model, config)
    elif kind == "sparse":
        packed = compress.prune_weights(model, config)
    else:
        packed = compress.linear_quantize_weights(model, config)
    dense = compress.decompress_weights(packed) if target != "iOS18" else None
    return pack(packed), (x, weight, pack(dense) if dense is not None else None)


@pytest.mark.parametrize(
    ("kind", "operation", "error"),
    [
        ("int8", "constexpr_affine_dequantize", 0.02),
        ("uint8", "constexpr_affine_dequantize", 0.02),
        ("palette", "constexpr_lut_to_dense", 0.25),
        ("sparse", "constexpr_sparse_to_dense", 4.0),
        ("int4-blocks", "constexpr_blockwise_shift_scale", 0.25),
        ("palette-groups", "constexpr_lut_to_dense", 0.1),
    ],
    ids=str,
)
def test_compressed_weights_unpack_to_what_they_stand_for(kind: str, operation: str, error: float) -> None:
    model, (x, weight, dense) = _compressed(kind)
    assert count_operations(model)[operation] == 1
    got = run(model, x)[0]
    if dense is not None:
        assert np.allclose(got, run(dense, x)[0], atol=1e-5)
    basis = np.eye(64, dtype=np.float32)
    unpacked = np.concatenate([run(model, row[None])[0] for row in basis]).T
    assert np.abs(unpacked - weight).max() <= error
    assert np.allclose(got, x @ unpacked.T, atol=1e-4)


def test_watch_sees_inner_tensors_by_name() -> None:
    backend = open_mil(package(lambda mb, a: mb.relu(x=mb.mul(x=a, y=2.0)), [X]), EngineOptions())
    assert isinstance(backend, MilBackend)
    seen: dict[str, Any] = {}
    backend.interpreter.run({"x0": X}, watch=lambda name, value: seen.__setitem__(name, value.tolist()))
    assert seen["mul_0"] == (X * 2).tolist()
    assert seen["y0"] == [[2.0, 0.0, 6.0]]
