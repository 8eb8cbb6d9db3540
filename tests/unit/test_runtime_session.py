from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import Array, EngineOptions, RawTensor
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.session import Session, open_session
from edgeml.wire.errors import EngineError, InputError, ModelError
from edgeml.wire.manifest import Binding, Quantization, Signature, TensorSpec
from tests.unit.bundles import FULL, INT8_SCALE, logits, make_bundle, onnx_model, samples, tflite_model

OPTIONS = EngineOptions()


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), artifacts=FULL)


@pytest.fixture
def session(bundle_path: Path) -> Session:
    with open_bundle(bundle_path) as bundle:
        return open_session(bundle, bundle.manifest.artifacts[0])


def f32(values: list[float]) -> Array:
    return np.array(values, np.float32)


def i64(values: list[list[int]]) -> Array:
    return np.array(values, np.int64)


class Echo:
    """A backend that gives its inputs back and remembers what it was fed."""

    engine, version = "echo", "1"

    def __init__(self, inputs: Sequence[RawTensor], outputs: Sequence[RawTensor] | None = None) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs if outputs is not None else inputs)
        self.fed: list[list[Array]] = []

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.fed.append([array.copy() for array in inputs])
        return [array.copy() for array in inputs]

    def close(self) -> None: ...


def raw(name: str, shape: tuple[int | None, ...], dtype: str = "float32") -> RawTensor:
    return RawTensor(name, np.dtype(dtype), shape)


@pytest.mark.parametrize("which", range(len(FULL)), ids=[f"{f}:{p}" for f, p in FULL])
def test_every_engine_computes_the_formula(bundle_path: Path, which: int) -> None:
    with open_bundle(bundle_path) as bundle, open_session(bundle, bundle.manifest.artifacts[which]) as session:
        got = session.run({"x": samples()})["logits"]
    # an int8 output is rounded to the nearest multiple of its scale
    limit = INT8_SCALE / 2 + 1e-6 if FULL[which][1] == "int8" else 1e-5
    assert got.dtype == np.float32
    assert np.abs(got - logits(samples())).max() <= limit


@pytest.mark.parametrize("which", [0, 2], ids=["onnx", "tflite"])
def test_a_view_in_another_order_is_read_as_numpy_shows_it(bundle_path: Path, which: int) -> None:
    x = np.asfortranarray(samples(3))
    strided = np.repeat(samples(3), 2, axis=1)[:, ::2]
    with open_bundle(bundle_path) as bundle, open_session(bundle, bundle.manifest.artifacts[which]) as session:
        for view in (x, strided):
            assert np.allclose(session.run({"x": view})["logits"], logits(samples(3)), atol=1e-5)


def test_the_batch_axis_may_be_left_out(session: Session) -> None:
    sample = samples()[0]
    assert session.run({"x": sample})["logits"].shape == (3,)
    assert session.run({"x": sample[None]})["logits"].shape == (1, 3)


def test_a_batch_is_fed_one_by_one_where_the_file_takes_one(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, fixed_batch=True)
    with load(path) as model:
        assert np.allclose(model.run({"x": samples(5)}).outputs["logits"], logits(samples(5)), atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "names of the inputs: expected 'x', got none"),
        ({"X": np.zeros(4, np.float32)}, "expected 'x', got 'X'"),
        ({"x": np.zeros(4, np.float64)}, "got float64 (4,); convert it with .astype(numpy.float32)"),
        ({"x": np.zeros(5, np.float32)}, "input 'x': expected float32 (batch, 4), got float32 (5,)"),
        ({"x": np.zeros((2, 2, 4), np.float32)}, "got float32 (2, 2, 4)"),
        ({"x": np.zeros((0, 4), np.float32)}, "give at least one sample"),
        ({"x": [1.0, 2.0, 3.0, 4.0]}, "expected a numpy array, float32 (batch, 4), got list"),
    ],
    ids=["missing", "name", "dtype", "size", "rank", "empty", "list"],
)  # fmt: skip
def test_a_wrong_input_is_told_expected_and_got(session: Session, inputs: dict[str, Array], said: str) -> None:
    with pytest.raises(InputError) as caught:
        session.run(inputs)
    assert said in str(caught.value)


def test_two_inputs_must_agree_on_a_named_axis() -> None:
    signature = Signature(
        (TensorSpec("a", "float32", ("batch", "time")), TensorSpec("b", "float32", ("batch", "time"))),
        (TensorSpec("o", "float32", ("batch", "time")),),
    )
    bindings = (Binding("a", "a", 0, "float32", ("n", "t")), Binding("b", "b", 1, "float32", ("n", "t")))
    echo = Echo([raw("a", (None, None)), raw("b", (None, None))])
    session = Session(signature, bindings, (Binding("o", "a", 0, "float32", ("n", "t")),), echo)
    with pytest.raises(InputError, match="axis 'time': expected 3, as before, got 4"):
        session.run({"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 4), np.float32)})
    with pytest.raises(InputError, match="batch axis is given for some inputs only"):
        session.run({"a": np.zeros((1, 3), np.float32), "b": np.zeros(3, np.float32)})


def test_swapped_tensors_come_back_under_their_own_names() -> None:
    """The engine's order is (b, a): binding by index, not by position in the signature."""
    signature = Signature(
        (TensorSpec("a", "float32", ("batch", 2)), TensorSpec("b", "float32", ("batch", 2))),
        (TensorSpec("p", "float32", ("batch", 2)), TensorSpec("q", "float32", ("batch", 2))),
    )
    inputs = (Binding("a", "in_1", 1, "float32", (1, 2)), Binding("b", "in_0", 0, "float32", (1, 2)))
    outputs = (Binding("p", "in_1", 1, "float32", (1, 2)), Binding("q", "in_0", 0, "float32", (1, 2)))
    echo = Echo([raw("in_0", (1, 2)), raw("in_1", (1, 2))])
    got = Session(signature, inputs, outputs, echo).run({"a": f32([1, 2]), "b": f32([3, 4])})
    assert got["p"].tolist() == [1, 2]
    assert got["q"].tolist() == [3, 4]


def test_axes_are_laid_out_as_bound_and_back() -> None:
    """NCHW signature, NHWC artifact: permute (0, 2, 3, 1) as numpy.transpose takes it."""
    signature = Signature((TensorSpec("x", "float32", ("batch", 2, 3, 4)),), (TensorSpec("y", "float32", ("batch", 2, 3, 4)),))
    bound = Binding("x", "t", 0, "float32", (1, 3, 4, 2), permute=(0, 2, 3, 1))
    echo = Echo([raw("t", (1, 3, 4, 2))])
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    got = Session(signature, (bound,), (Binding("y", "t", 0, "float32", (1, 3, 4, 2), permute=(0, 2, 3, 1)),), echo).run(
        {"x": x}
    )
    assert (echo.fed[0][0] == x.transpose(0, 2, 3, 1)).all()
    assert (got["y"] == x).all()


def test_quantization_rounds_to_even_and_saturates() -> None:
    """stored = round(x / 0.5) + 10 in int8: 0.25 -> 0.5 -> 0 -> 10; 0.75 -> 1.5 -> 2 -> 12; 100 -> 210 -> 127."""
    signature = Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),))
    quantized = Quantization(0.5, 10)
    echo = Echo([raw("q", (1, 4), "int8")])
    session = Session(
        signature,
        (Binding("x", "q", 0, "int8", (1, 4), quantized),),
        (Binding("y", "q", 0, "int8", (1, 4), quantized),),
        echo,
    )
    got = session.run({"x": f32([0.25, 0.75, 100, -100])})["y"]
    assert echo.fed[0][0].tolist() == [[10, 12, 127, -128]]
    assert got.tolist() == [0.0, 1.0, 58.5, -69.0]
    with pytest.raises(InputError, match="holds NaN"):
        session.run({"x": f32([np.nan, 0, 0, 0])})


def test_an_integer_that_does_not_fit_the_artifact_is_refused() -> None:
    signature = Signature((TensorSpec("id", "int64", ("batch", 1)),), (TensorSpec("y", "int64", ("batch", 1)),))
    echo = Echo([raw("t", (1, 1), "int32")])
    bound = Binding("id", "t", 0, "int32", (1, 1))
    session = Session(signature, (bound,), (Binding("y", "t", 0, "int32", (1, 1)),), echo)
    assert session.run({"id": i64([[7]])})["y"].tolist() == [[7]]
    with pytest.raises(InputError, match="values that fit int32"):
        session.run({"id": i64([[2**40]])})


def test_a_state_beside_the_batch_is_not_stacked() -> None:
    """An output without a batch axis cannot be put together from several calls."""
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("state", "float32", (3,))),
        (TensorSpec("state_out", "float32", (3,)),),
    )
    echo = Echo([raw("x", (1, 2)), raw("s", (3,))])
    inputs = (Binding("x", "x", 0, "float32", (1, 2)), Binding("state", "s", 1, "float32", (3,)))
    session = Session(signature, inputs, (Binding("state_out", "s", 1, "float32", (3,)),), echo)
    state = f32([1, 2, 3])
    assert session.run({"x": np.zeros((1, 2), np.float32), "state": state})["state_out"].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="samples in one call: expected 1, got 2"):
        session.run({"x": np.zeros((2, 2), np.float32), "state": state})


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        (Binding("x", "other", 0, "float32", ("n", 4)), "expected 'other', got 'input.1'"),
        (Binding("x", "input.1", 3, "float32", ("n", 4)), "no such position"),
        (Binding("x", "input.1", 0, "int8", ("n", 4)), "expected int8, got float32"),
        (Binding("x", "input.1", 0, "float32", ("n", 5)), "expected (n, 5), got (None, 4)"),
    ],
    ids=["name", "position", "dtype", "shape"],
)
def test_a_binding_that_does_not_fit_the_model_is_refused(binding: Binding, said: str) -> None:
    signature = Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 3)),))
    with pytest.raises(ModelError) as caught:
        Session(signature, (binding,), (Binding("y", "score_0", 0, "float32", ("n", 3)),), open_onnx(onnx_model(), OPTIONS))
    assert said in str(caught.value)


def test_eight_threads_get_their_own_answers(session: Session) -> None:
    x = samples(64)
    expected = logits(x)
    right: list[bool] = []

    def work(first: int) -> None:
        for i in range(first, 64, 8):
            right.append(np.allclose(session.run({"x": x[i]})["logits"], expected[i], atol=1e-5))  # noqa: PERF401

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 64


def test_answers_do_not_change_when_the_engine_runs_again(bundle_path: Path) -> None:
    with load(bundle_path, format="tflite", precision="fp32") as model:
        first = model.run({"x": samples()[0]}).outputs["logits"]
        kept = first.copy()
        model.run({"x": samples()[1]})
        assert (first == kept).all()


def test_a_closed_session_says_so(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": samples()[0]})


@pytest.mark.parametrize("kernels", ["default", "reference", "exact", "stock"])
def test_every_set_of_kernels_computes_the_formula(kernels: str) -> None:
    x = samples(1)
    for backend in (
        open_onnx(onnx_model(), EngineOptions(kernels=kernels)),
        open_tflite(tflite_model(), EngineOptions(kernels=kernels)),
    ):
        assert np.allclose(backend.run([x])[0], logits(x), atol=1e-5)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(EngineError, match="expected default or"):
        open_onnx(onnx_model(), EngineOptions(kernels="magic"))
    with pytest.raises(EngineError, match="expected default or"):
        open_tflite(tflite_model(), EngineOptions(kernels="magic"))


@pytest.mark.parametrize("model", [b"", b"garbage" * 50, tflite_model()], ids=["empty", "garbage", "tflite"])
def test_what_is_no_onnx_model_is_a_model_error(model: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        open_onnx(model, OPTIONS)


@pytest.mark.parametrize("model", [b"", b"garbage" * 50, tflite_model()[:200]], ids=["empty", "garbage", "truncated"])
def test_what_is_no_tflite_model_is_a_model_error(model: bytes) -> None:
    with pytest.raises(ModelError, match="not a TFLite model"):
        open_tflite(model, OPTIONS)


def test_an_engine_that_fails_in_a_call_is_an_engine_error() -> None:
    backend = open_onnx(onnx_model(), OPTIONS)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        backend.run([np.zeros((1, 9), np.float32)])
