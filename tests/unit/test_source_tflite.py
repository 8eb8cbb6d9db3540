"""TFLite files as sources: what they say of themselves, which graph is run, and what damaged ones end in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks._models import SIDE, conv_tflite
from edgeml.exporter.convert import tflite as convert
from edgeml.exporter.convert.onnx import tflite_to_onnx
from edgeml.exporter.quantize.tflite import to_fp16_tflite, to_int8_tflite, to_small_weights_tflite
from edgeml.exporter.source import SourceRef, locate
from edgeml.exporter.source import tflite as source
from edgeml.exporter.source.model import read_arrays, write_arrays
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.wire.errors import EdgemlError, ModelError, PlanError, UnsupportedError
from tests.unit.bundles import tflite_model


def saved(folder: Path, data: bytes, name: str = "m.tflite") -> SourceRef:
    (folder / name).write_bytes(data)
    return locate(str(folder / name))


def run(model: bytes, *inputs: Array) -> list[Array]:
    return opener("tflite")(model, EngineOptions()).run(inputs)


def quantized() -> bytes:
    """A small convolution net in int8, float32 at its ends, by ranges of noise."""
    model = conv_tflite()
    name = opener("tflite")(model, EngineOptions()).inputs[0].name
    return to_int8_tflite(model, {name: np.random.default_rng(0).normal(size=(8, SIDE, SIDE, 1)).astype(np.float32)}).model


def two_signatures(names: tuple[str, str] = ("plain", "shifted")) -> bytes:
    """One file with two graphs: x W and x W + 1."""
    whole, other = parse_model(tflite_model(0.0)), parse_model(tflite_model(1.0))
    offset = len(whole.buffers)
    for tensor in other.subgraphs[0].tensors:
        tensor.buffer += offset
    whole.buffers += other.buffers
    whole.subgraphs += other.subgraphs
    whole.signatureDefs = []
    for index, name in enumerate(names):
        definition = schema().SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = name.encode(), index
        graph = whole.subgraphs[index]
        definition.inputs, definition.outputs = [_entry("x", graph.inputs[0])], [_entry("y", graph.outputs[0])]
        whole.signatureDefs.append(definition)
    return pack_model(whole)


def _entry(name: str, tensor: int) -> Any:
    entry = schema().TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), int(tensor)
    return entry


def test_a_float_file_is_its_own_source_byte_for_byte(tmp_path: Path) -> None:
    ref = saved(tmp_path, tflite_model())
    model = source.load(ref)
    convert.from_tflite(msgspec.to_builtins(ref), str(tmp_path / "out"))
    assert ref.kind == "tflite"
    assert [(spec.name, spec.shape) for spec in model.signature.inputs] == [("x", ("batch", 4))]
    assert model.stored == "fp32"
    assert (tmp_path / "out").read_bytes() == tflite_model()


def test_the_reference_is_what_the_file_answers(tmp_path: Path) -> None:
    ref = saved(tmp_path, tflite_model())
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    write_arrays(tmp_path / "in.npz", [x])
    source.reference(msgspec.to_builtins(ref), str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))
    answers = read_arrays(tmp_path / "out.npz", ["y"])["y"]
    assert np.array_equal(answers, np.concatenate([run(tflite_model(), row[None])[0] for row in x]))


SMALLER: dict[str, Callable[[bytes], bytes]] = {
    "int8": lambda _: quantized(),
    "fp16": to_fp16_tflite,
    "int8-dynamic": lambda model: to_small_weights_tflite(model, None, bits=8, dynamic=True).model,
    "int8-weights": lambda model: to_small_weights_tflite(model, None, bits=8, dynamic=False).model,
    "fp32": lambda model: model,
}


@pytest.mark.parametrize("found", SMALLER)
def test_the_precision_is_read_from_the_tensors(tmp_path: Path, found: str) -> None:
    assert source.load(saved(tmp_path, SMALLER[found](conv_tflite()))).stored == found


def test_another_format_of_a_quantized_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = source.load(saved(tmp_path, quantized()))
    with pytest.raises(UnsupportedError, match=r"TFLite only, because .* int8.*export the float model") as caught:
        tflite_to_onnx(model)
    assert caught.value.exit_code == 5


def test_several_signatures_ask_for_a_choice_and_are_listed(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"several signatures: plain, shifted; choose one with --signature"):
        source.load(saved(tmp_path, two_signatures()))


@pytest.mark.parametrize(("name", "shift"), [("plain", 0.0), ("shifted", 1.0)])
def test_the_chosen_signatures_graph_is_the_one_that_runs(tmp_path: Path, name: str, shift: float) -> None:
    path = saved(tmp_path, two_signatures()).path
    model = source.load(locate(path, signature=name))
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(run(model.model, x)[0], run(tflite_model(shift), x)[0])
    assert [spec.name for spec in (*model.signature.inputs, *model.signature.outputs)] == ["x", "y"]


def test_the_default_signature_needs_no_choice(tmp_path: Path) -> None:
    model = source.load(saved(tmp_path, two_signatures(("other", "serving_default"))))
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(run(model.model, x)[0], run(tflite_model(1.0), x)[0])


def test_a_signature_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, two_signatures()).path
    with pytest.raises(PlanError, match=r"no signature 'train': .*got plain, shifted"):
        source.load(locate(path, signature="train"))


def test_a_signature_for_a_source_with_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(PlanError, match="--signature is for SavedModel and TFLite"):
        locate(str(tmp_path / "m.onnx"), signature="x")


def test_tensors_that_share_a_name_get_names_of_their_own(tmp_path: Path) -> None:
    parsed = parse_model(tflite_model())
    for tensor in parsed.subgraphs[0].tensors[1:3]:
        tensor.name = b"same"
    ref = saved(tmp_path, pack_model(parsed))
    notes = convert.from_tflite(msgspec.to_builtins(ref), str(tmp_path / "out"))
    written = (tmp_path / "out").read_bytes()
    names = [tensor.name for tensor in parse_model(written).subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert "shared a name" in notes[0]
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(run(written, x)[0], run(tflite_model(), x)[0])


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    parsed = parse_model(tflite_model())
    parsed = copy.deepcopy(parsed)
    tensor = next(one for one in parsed.subgraphs[0].tensors if one.name == b"weights")
    values = np.asarray(parsed.buffers[tensor.buffer].data, np.uint8).view(np.float32).copy()
    values[0] = np.nan
    parsed.buffers[tensor.buffer].data = values.view(np.uint8)
    with pytest.raises(ModelError, match="weight 'weights' holds NaN or infinity in 1 of 12"):
        source.load(saved(tmp_path, pack_model(parsed)))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_in_one_line(tmp_path: Path, keep: float) -> None:
    data = conv_tflite()
    with pytest.raises(EdgemlError) as caught:
        source.load(saved(tmp_path, data[: int(len(data) * keep)]))
    assert "\n" not in str(caught.value)
