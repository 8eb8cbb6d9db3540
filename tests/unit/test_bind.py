"""Bindings are proved by value: renamed, reordered and transposed tensors are found, and wrong ones are not accepted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgeml.exporter.parity.bind import bind, normal_name
from edgeml.runtime.backends import Array, RawTensor
from edgeml.runtime.session import Session
from edgeml.wire.errors import ParityError
from edgeml.wire.manifest import Binding, Quantization, Signature, TensorSpec

F4 = np.dtype(np.float32)
RANDOM = np.random.default_rng(0)


class Computed:
    """A backend whose model is a function of its inputs, in their order."""

    engine = "test"
    version = "1"

    def __init__(
        self, inputs: Sequence[RawTensor], outputs: Sequence[RawTensor], function: Callable[..., Sequence[Array]]
    ) -> None:
        self.inputs, self.outputs, self._function = tuple(inputs), tuple(outputs), function

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        for raw, value in zip(self.inputs, inputs, strict=True):
            assert value.dtype == raw.dtype
            assert all(size in {None, got} for size, got in zip(raw.shape, value.shape, strict=True))
        return [np.asarray(value) for value in self._function(*inputs)]

    def close(self) -> None:
        pass


def raw(name: str, *shape: int | None, dtype: np.dtype[np.generic] = F4, quantization: Quantization | None = None) -> RawTensor:
    return RawTensor(name, dtype, shape, quantization)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def draw(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def names(bindings: tuple[Binding, ...]) -> dict[str, str]:
    return {binding.name: binding.tensor for binding in bindings}


def test_outputs_of_one_shape_are_told_apart_by_value_not_by_order_or_name() -> None:
    signature = Signature((spec("x", "batch", 4),), (spec("mean", "batch", 4), spec("scale", "batch", 4)))
    x = draw(20, 4)
    backend = Computed([raw("x", 1, 4)], [raw("mean", 1, 4), raw("scale", 1, 4)], lambda x: (np.exp(x), x + 1))  # names lie
    _, outputs = bind(backend, signature, {"x": x}, {"mean": x + 1, "scale": np.exp(x)})
    assert names(outputs) == {"mean": "scale", "scale": "mean"}
    assert [binding.index for binding in outputs] == [1, 0]


def test_inputs_of_one_shape_are_told_apart_by_value() -> None:
    signature = Signature((spec("a", "batch", 4), spec("b", "batch", 4)), (spec("y", "batch", 4),))
    a, b = draw(20, 4), draw(20, 4)
    backend = Computed([raw("in_0", 1, 4), raw("in_1", 1, 4)], [raw("out", 1, 4)], lambda p, q: (q - 2 * p,))
    inputs, _ = bind(backend, signature, {"a": a, "b": b}, {"y": a - 2 * b})
    assert names(inputs) == {"b": "in_0", "a": "in_1"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_every_order_of_three_inputs_is_found(order: tuple[int, ...]) -> None:
    signature = Signature(tuple(spec(name, "batch", 4) for name in "abc"), (spec("y", "batch", 4),))
    values = {name: draw(12, 4) for name in "abc"}

    def model(*given: Array) -> tuple[Array]:
        return (sum(((i + 1) * given[order[i]] for i in range(3)), np.zeros((1, 4), np.float32)),)

    reference = values["a"] + 2 * values["b"] + 3 * values["c"]
    inputs, _ = bind(
        Computed([raw(f"i{k}", 1, 4) for k in range(3)], [raw("o", 1, 4)], model), signature, values, {"y": reference}
    )
    assert {binding.name: binding.index for binding in inputs} == {name: order[i] for i, name in enumerate("abc")}


def test_names_win_where_values_cannot_tell() -> None:
    signature = Signature((spec("left", "batch", 4), spec("right", "batch", 4)), (spec("y", "batch", 4),))
    left, right = draw(9, 4), draw(9, 4)
    tensors = [raw("serving_default_right:0", 1, 4), raw("serving_default_left:0", 1, 4)]
    inputs, _ = bind(
        Computed(tensors, [raw("o", 1, 4)], lambda a, b: (a + b,)),
        signature,
        {"left": left, "right": right},
        {"y": left + right},
    )
    assert names(inputs) == {"left": "serving_default_left:0", "right": "serving_default_right:0"}


def test_a_channels_first_artifact_of_a_channels_last_source_is_transposed() -> None:
    signature = Signature((spec("image", "batch", 5, 6, 3),), (spec("map", "batch", 5, 6, 2),))
    image = draw(10, 5, 6, 3)

    def model(nchw: Array) -> tuple[Array]:
        assert nchw.flags.c_contiguous
        return (nchw[:, :2] * np.arange(6),)

    backend = Computed([raw("x", 1, 3, 5, 6)], [raw("y", 1, 2, 5, 6)], model)
    reference = {"map": image[..., :2] * np.arange(6, dtype=np.float32)[None, None, :, None]}
    inputs, outputs = bind(backend, signature, {"image": image}, reference)
    assert (inputs[0].permute, outputs[0].permute) == ((0, 3, 1, 2), (0, 3, 1, 2))
    with Session(signature, inputs, outputs, backend) as session:
        got = session.run({"image": image[3:4]})["map"]
    np.testing.assert_allclose(got[0], reference["map"][3], rtol=1e-6)


def test_a_square_image_with_height_and_width_exchanged_is_noticed() -> None:
    signature = Signature((spec("image", "batch", 4, 4, 3),), (spec("y", "batch", 4),))
    image = draw(10, 4, 4, 3)
    backend = Computed([raw("x", 1, 3, 4, 4)], [raw("y", 1, 4)], lambda x: (x.sum(axis=(1, 2)),))  # sums its own axis 2
    inputs, _ = bind(backend, signature, {"image": image}, {"y": image.sum(axis=(2, 3))})
    assert inputs[0].permute == (0, 3, 2, 1)


def test_quantized_tensors_are_compared_in_real_units() -> None:
    signature = Signature((spec("x", "batch", 8),), (spec("y", "batch", 8),))
    int8 = np.dtype(np.int8)
    q_in, q_out = Quantization(0.05, 3), Quantization(0.1, -7)

    def model(stored: Array) -> tuple[Array]:
        real = (stored.astype(np.float32) - 3) * np.float32(0.05)
        return (np.clip(np.round(2 * real / 0.1) - 7, -128, 127).astype(np.int8),)

    x = draw(30, 8)
    backend = Computed([raw("i", 1, 8, dtype=int8, quantization=q_in)], [raw("o", 1, 8, dtype=int8, quantization=q_out)], model)
    inputs, outputs = bind(backend, signature, {"x": x}, {"y": 2 * x})
    assert (inputs[0].quantization, inputs[0].dtype) == (q_in, "int8")
    assert (outputs[0].quantization, outputs[0].dtype) == (q_out, "int8")


def test_nothing_that_fits_is_an_error_with_the_closest_candidate_and_its_error() -> None:
    signature = Signature((spec("x", "batch", 4),), (spec("a", "batch", 4), spec("b", "batch", 4)))
    x = draw(20, 4)
    backend = Computed([raw("x", 1, 4)], [raw("p", 1, 4), raw("q", 1, 4)], lambda x: (np.sin(9 * x), np.cos(9 * x)))
    with pytest.raises(
        ParityError, match=r"expected rms error at most 0.5 .* got 1\.\d+ for the closest, 'x' <- 'x', 'a' <- "
    ) as caught:
        bind(backend, signature, {"x": x}, {"a": x, "b": x**2})
    assert caught.value.exit_code == 3


def test_a_wrong_model_with_only_one_way_to_bind_is_left_to_the_comparison() -> None:
    signature = Signature((spec("image", "batch", 4, 4, 3),), (spec("y", "batch", 2),))
    backend = Computed([raw("image", 1, 4, 4, 3)], [raw("y", 1, 2)], lambda _: (np.zeros((1, 2), np.float32),))
    inputs, outputs = bind(backend, signature, {"image": draw(5, 4, 4, 3)}, {"y": draw(5, 2)})
    assert (inputs[0].permute, outputs[0].tensor) == (None, "y")


def test_a_model_that_gives_nan_is_bound_too_if_there_is_one_way() -> None:
    signature = Signature((spec("x", "batch", 2),), (spec("y", "batch", 2),))
    backend = Computed([raw("x", 1, 2)], [raw("y", 1, 2)], lambda x: (x * np.nan,))
    _, outputs = bind(backend, signature, {"x": draw(5, 2)}, {"y": draw(5, 2)})
    assert names(outputs) == {"y": "y"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        pytest.param([raw("x", 1, 5)], [raw("y", 1, 2)], "artifact's input 'x' fits no input", id="input shape"),
        pytest.param([raw("x", 1, 4)], [raw("y", 1, 3)], "output 'y': the artifact has no tensor for it", id="output shape"),
        pytest.param([raw("x", 1, 4), raw("z", 1, 4)], [raw("y", 1, 2)], "other inputs than the signature", id="more inputs"),
        pytest.param([raw("x", 1, 4, dtype=np.dtype(np.int8))], [raw("y", 1, 2)], "fits no input", id="integers without scale"),
    ],
)
def test_a_contract_that_cannot_be_met_names_the_tensor(
    inputs: list[RawTensor], outputs: list[RawTensor], message: str
) -> None:
    signature = Signature((spec("x", "batch", 4),), (spec("y", "batch", 2),))
    with pytest.raises(ParityError, match=message):
        bind(Computed(inputs, outputs, lambda *_: ()), signature, {"x": draw(3, 4)}, {"y": draw(3, 2)})


def test_extra_outputs_of_an_artifact_stay_unbound() -> None:
    signature = Signature((spec("x", "batch", 4),), (spec("y", "batch", 4),))
    x = draw(9, 4)
    backend = Computed([raw("x", 1, 4)], [raw("debug", 1, 4), raw("Identity", 1, 4)], lambda x: (x**3, 5 * x))
    _, outputs = bind(backend, signature, {"x": x}, {"y": 5 * x})
    assert names(outputs) == {"y": "Identity"}


def test_states_and_scalars_are_bound_without_a_batch_axis() -> None:
    signature = Signature(
        (spec("x", "batch", 4), spec("state", 2, 1, 4), spec("gain")), (spec("y", "batch", 4), spec("next", 2, 1, 4))
    )
    x, state, gain = draw(9, 4), draw(9, 2, 1, 4), draw(9)
    backend = Computed(
        [raw("g", 1), raw("h", 2, 1, 4), raw("i", 1, 4)],  # Core ML has no scalars: rank 1
        [raw("h2", 2, 1, 4), raw("o", 1, 4)],
        lambda g, h, i: (h + i, i * g + h[0]),
    )
    reference = {"y": x * gain[:, None] + state[:, 0, 0], "next": state + x[:, None, None]}
    inputs, outputs = bind(backend, signature, {"x": x, "state": state, "gain": gain}, reference)
    assert names(inputs) == {"gain": "g", "state": "h", "x": "i"}
    assert names(outputs) == {"y": "o", "next": "h2"}
    with Session(signature, inputs, outputs, backend) as session:
        got = session.run({"x": x[:1], "state": state[0], "gain": np.asarray(gain[0])})
    np.testing.assert_allclose(got["next"], reference["next"][0], rtol=1e-6)


def test_open_axes_take_their_name_from_the_signature() -> None:
    signature = Signature((spec("x", "batch", 4),), (spec("y", "batch", 4),))
    x = draw(5, 4)
    inputs, _ = bind(Computed([raw("x", None, 4)], [raw("y", None, 4)], lambda x: (x,)), signature, {"x": x}, {"y": x})
    assert inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("serving_default_input_1:0", "input_1"),
        ("StatefulPartitionedCall:0", ""),
        ("model/dense/Softmax:0", "dense_softmax"),
        ("args_0", "0"),
        ("X", "x"),
    ],
)
def test_what_converters_put_around_a_name_is_taken_off(name: str, normal: str) -> None:
    assert normal_name(name) == normal
