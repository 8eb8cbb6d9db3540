"""int8 and float16 TFLite of a small convolution net, against its float form."""

from __future__ import annotations

import importlib
from typing import Any

import flatbuffers
import numpy as np
import pytest

from benchmarks._models import SIDE, conv_tflite
from edgeml.exporter.quantize.equalize import equalized
from edgeml.exporter.quantize.layers import channel_ranges, watch_inputs
from edgeml.exporter.quantize.tflite import to_fp16_tflite, to_int8_tflite
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, with_less
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import ModelError, PlanError

MODEL = conv_tflite()
INPUT = open_tflite(MODEL, EngineOptions()).inputs[0].name
DENSE_WEIGHTS = 10 * SIDE * SIDE * 8


def samples(n: int = 40, seed: int = 3) -> Array:
    return np.random.default_rng(seed).normal(size=(n, SIDE, SIDE, 1)).astype(np.float32)


FEEDS = {INPUT: samples()}


def run(model: bytes, x: Array, kernels: str = "default") -> Array:
    backend = open_tflite(model, EngineOptions(kernels=kernels))
    return np.concatenate([backend.run([x[i : i + 1]])[0] for i in range(len(x))])


def tensors(model: bytes) -> dict[str, Any]:
    """The main graph's tensors by name."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    graph = schema.Model.GetRootAs(model, 0).Subgraphs(0)
    return {graph.Tensors(i).Name().decode(): graph.Tensors(i) for i in range(graph.TensorsLength())}


def weights_of(model: bytes) -> dict[str, Any]:
    """Each layer's weights by the layer's output: constants have no names to speak of in small files."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    graph = schema.Model.GetRootAs(model, 0).Subgraphs(0)
    made = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return {graph.Tensors(op.Outputs(0)).Name().decode(): graph.Tensors(op.Inputs(1)) for op in made if op.InputsLength() > 2}


def test_layers_have_the_common_order() -> None:
    network = TfliteNetwork(MODEL)
    first, second, last = network.layers

    assert network.read(first).shape == (8, 1, 3, 3)
    assert network.read(second).shape == (8, 8, 3, 3)
    assert network.read(last).shape == (10, SIDE * SIDE * 8)
    assert [(link.producer, link.consumers) for link in network.links] == [(first, (second,))]  # the dense one flattens


def test_windows_times_weights_give_the_mean_of_the_layers_output() -> None:
    network = TfliteNetwork(MODEL)
    last = network.layers[-1]
    seen = watch_inputs(network, FEEDS).moments(last)

    mean = network.read(last) @ seen.mean[0] + network.read_bias(last)

    assert mean == pytest.approx(run(MODEL, FEEDS[INPUT]).mean(axis=0), abs=1e-4)


def test_equalizing_brings_channels_together_and_changes_no_output() -> None:
    network = TfliteNetwork(MODEL)

    changed = equalized(network, FEEDS)

    assert run(bytes(changed.model), samples(seed=4)) == pytest.approx(run(MODEL, samples(seed=4)), abs=1e-3)  # type: ignore[attr-defined]
    name = network.links[0].producer.activation
    before, after = channel_ranges(network, FEEDS)[name], channel_ranges(changed, FEEDS)[name]
    assert after.max() == pytest.approx(before.max(), rel=1e-4)
    assert after.max() / after.min() == pytest.approx((before.max() / before.min()) ** 0.5, rel=1e-3)


def test_ranges_and_weights_scales_in_the_file_are_the_ones_given() -> None:
    network = TfliteNetwork(MODEL)
    first, second, _ = network.layers
    scales = {layer.weights: np.linspace(0.1, 0.8, 8) for layer in (first, second)}

    written = network.quantized({INPUT: (-2.0, 3.1), first.activation: (0.0, 5.1), second.activation: (0.0, 2.55)}, scales)  # type: ignore[dict-item]

    found = tensors(written)
    activation = found[first.activation].Quantization()
    assert activation.ScaleAsNumpy() == pytest.approx([5.1 / 255], rel=1e-6)
    assert activation.ZeroPointAsNumpy() == pytest.approx([-128])
    for layer in (first, second):
        assert weights_of(written)[layer.output].Quantization().ScaleAsNumpy() == pytest.approx(
            np.linspace(0.1, 0.8, 8), rel=1e-6
        )


def test_int8_is_near_and_small_with_float_inputs_and_outputs() -> None:
    x = samples(seed=4)

    quantized = to_int8_tflite(MODEL, FEEDS).model

    backend = open_tflite(quantized, EngineOptions())
    assert [t.dtype for t in (*backend.inputs, *backend.outputs)] == [np.float32, np.float32]
    wanted = run(MODEL, x)
    for kernels in ("default", "exact"):
        assert np.sqrt(np.mean((run(quantized, x, kernels) - wanted) ** 2)) < 0.03 * wanted.std()
    assert len(quantized) < len(MODEL) - 2.5 * DENSE_WEIGHTS


def test_equal_samples_give_equal_bytes() -> None:
    assert to_int8_tflite(MODEL, FEEDS) == to_int8_tflite(MODEL, {INPUT: samples()})


def test_the_model_given_is_left_as_it_is() -> None:
    before = bytes(MODEL)
    to_int8_tflite(MODEL, FEEDS)
    assert before == MODEL


def test_a_layer_kept_float_keeps_its_weights() -> None:
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    first, second, _ = TfliteNetwork(MODEL).layers

    quantized = to_int8_tflite(MODEL, FEEDS, keep_float=frozenset({first.output})).model

    found = weights_of(quantized)
    assert found[first.output].Type() == schema.TensorType.FLOAT32
    assert found[second.output].Type() == schema.TensorType.INT8


def test_foreign_samples_are_refused() -> None:
    with pytest.raises(PlanError, match="no calibration samples for input"):
        to_int8_tflite(MODEL, {"other": samples()})


def test_float16_halves_the_weights_and_keeps_float_inputs() -> None:
    half = to_fp16_tflite(MODEL)

    assert len(half) < 0.52 * len(MODEL)
    assert run(half, samples(4)) == pytest.approx(run(MODEL, samples(4)), abs=0.02)
    assert to_fp16_tflite(MODEL) == half


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # litert-torch's
def test_a_constant_that_shares_its_operators_scale_is_quantized() -> None:
    """The floor under a length, in an embedding divided by it."""
    torch, litert_torch = pytest.importorskip("torch"), pytest.importorskip("litert_torch")
    torch.manual_seed(3)
    layers = torch.nn.Linear(8, 6).eval()

    class Unit(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is Any here
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.normalize(layers(x), dim=1)

    net, x = Unit().eval(), np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32)
    model = litert_torch.convert(net, (torch.zeros(1, 8),)).model_content()
    name = open_tflite(model, EngineOptions()).inputs[0].name
    backend = open_tflite(to_int8_tflite(model, {name: x}).model, EngineOptions())
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    got = np.concatenate([backend.run([row[None]])[0] for row in x])
    assert np.abs(got - expected).max() < 0.1


def test_equal_scales_zero_points_and_buffers_are_stored_once() -> None:
    parsed = parse_model(to_int8_tflite(MODEL, FEEDS).model)
    loose = flatbuffers.Builder(1024)
    loose.Finish(parsed.Pack(loose), file_identifier=b"TFL3")
    contents = [bytes(buffer.data) for buffer in parsed.buffers if buffer.data is not None]

    small = pack_model(parsed)

    assert len(small) < len(loose.Output()) - 8 * 8 * 3  # zero points of 8 channels, of two layers' weights and biases
    assert len(set(contents)) == len(contents)
    assert np.array_equal(run(small, samples(seed=4)), run(bytes(loose.Output()), samples(seed=4)))


def behind_the_tables(model: bytes) -> bytes:
    """The same file with its largest buffer at the end, as ai-edge-quantizer writes buffers once they take 256 KiB."""
    parsed = parse_model(model)
    largest = max((buffer for buffer in parsed.buffers if buffer.data is not None), key=lambda buffer: len(buffer.data))
    content = bytes(largest.data)
    largest.data, largest.offset, largest.size = None, 1 << 20, len(content)
    largest.offset = -(-len(pack_model(parsed)) // 16) * 16
    return pack_model(parsed).ljust(largest.offset, b"\0") + content


def test_weights_that_stand_behind_the_tables_are_kept_when_a_file_is_written_again() -> None:
    x = samples(3)
    apart = behind_the_tables(MODEL)

    assert len(apart) > len(MODEL) - 64
    np.testing.assert_array_equal(run(with_less(apart), x), run(MODEL, x))


def test_a_buffer_beyond_the_file_is_refused() -> None:
    with pytest.raises(ModelError, match="ends beyond the file"):
        parse_model(behind_the_tables(MODEL)[:-1])
