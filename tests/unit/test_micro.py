"""`edgeml micro`: what a microcontroller is given was run in TensorFlow Lite Micro, or is refused by name."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import msgspec
import numpy as np
import pytest

from benchmarks._models import SIDE, conv_tflite
from edgeml.cli import main
from edgeml.exporter.quantize.keep_float import StaticTuner
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.target import arena
from edgeml.exporter.target.flatbuffer import Operator, aligned, read_graph, strip_edges
from edgeml.exporter.target.micro import Micro, make_micro
from edgeml.exporter.target.operators import OPERATORS, resolver_calls
from edgeml.exporter.target.sources import Program, write
from edgeml.exporter.target.vectors import Vectors
from edgeml.runtime.backends import Array, EngineOptions, RawTensor
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import EngineError, MissingExtraError, SelfTestError, UnsupportedError, UsageError
from tests.unit.bundles import make_bundle, samples, tflite_model

pytest.importorskip("tflite_micro", reason="no tflite-micro here: install edgeml-toolkit[micro]")

from edgeml.exporter.target import tflm
from edgeml.exporter.target.tflm import TflmBackend, check


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Micro, Path]:
    folder = tmp_path_factory.mktemp("micro")
    bundle = make_bundle(folder, artifacts=(("tflite", "fp32"),))
    return make_micro(bundle, folder / "out"), folder / "out"


def test_golden_vectors_pass_in_the_arena_that_is_printed(toy: tuple[Micro, Path]) -> None:
    made, _ = toy
    assert (made.golden.samples, made.golden.agreement) == (32, 1.0)
    assert made.golden.max_abs <= made.golden.tolerance
    assert made.where == "emulated"
    assert made.operators == ("FULLY_CONNECTED",)
    assert made.reserved_bytes >= made.arena_bytes * 1.1


def test_sixteen_bytes_less_are_too_few(toy: tuple[Micro, Path]) -> None:
    made, _ = toy
    TflmBackend(tflite_model(), made.arena_bytes).close()
    with pytest.raises(EngineError, match="refuses the model: Failed to"):
        TflmBackend(tflite_model(), made.arena_bytes - 16)


class Arena:
    """A model whose answers are damaged in less than 100 bytes, and which is refused in less than 50."""

    inputs = (RawTensor("x", np.dtype("int8"), (1, 4)),)

    def __init__(self, model: bytes, arena_bytes: int) -> None:
        if arena_bytes < 50:
            raise EngineError(f"{len(model)} bytes do not fit")
        self.damage = int(arena_bytes < 100)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [inputs[0] ^ self.damage]


def test_an_arena_in_which_a_model_answers_otherwise_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "TflmBackend", Arena)
    (tmp_path / "m.tflite").write_bytes(b"")
    found = [tflm.fits(model=str(tmp_path / "m.tflite"), arena_bytes=size) for size in (49, 99, 100, 1000)]
    assert found == [False, False, True, True]


@pytest.mark.parametrize("needed", [1, 16, 17, 4096, 4097, 24_272, 1_000_000])
def test_the_least_arena_is_found_whatever_it_is(needed: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size >= needed

    assert arena.least(fits, 64 << 20) == -(-needed // 16) * 16
    assert len(tried) < 30


def test_the_sources_hold_the_model_and_compile(toy: tuple[Micro, Path], tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    _, out = toy
    program = tmp_path / "show.cc"
    program.write_text(
        '#include "golden.h"\n#include "model_data.h"\n#include <cstdio>\n'
        "int main() {\n  if (reinterpret_cast<std::uintptr_t>(g_model) % 16) return 1;\n"
        "  std::fwrite(g_model, 1, kModelBytes, stdout);\n  std::fwrite(kInput0, 1, sizeof(kInput0), stdout);\n  return 0;\n}\n"
    )
    compiler = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-const-variable", f"-I{out}"]
    subprocess.run([*compiler, program, out / "model_data.cc", "-o", tmp_path / "show"], check=True)
    said = subprocess.run([tmp_path / "show"], capture_output=True, check=True).stdout
    model = aligned(tflite_model())
    assert said[: len(model)] == model
    fed = np.frombuffer(said[len(model) :], np.float32).reshape(8, 4)
    assert np.array_equal(fed, samples()[np.linspace(0, 31, 8).astype(int)])


def test_every_constant_is_where_a_board_wants_it() -> None:
    schema: Any = importlib.import_module("tflite_micro.tensorflow.lite.micro.python.schema_py_generated")
    model = aligned(tflite_model())
    parsed = schema.Model.GetRootAsModel(model, 0)
    whole = np.frombuffer(model, np.uint8).ctypes.data
    for index in range(parsed.BuffersLength()):
        buffer = parsed.Buffers(index)
        if buffer.DataLength():
            assert (buffer.DataAsNumpy().ctypes.data - whole) % 16 == 0


def test_answers_beyond_the_tolerance_are_no_program(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, artifacts=(("tflite", "fp32"),), model_bias=1.0)
    with pytest.raises(SelfTestError, match="artifact tflite:fp32: output 'logits' of golden sample 0 is off"):
        make_micro(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_operators_without_a_kernel_are_all_named() -> None:
    operators = [Operator(kind, custom, floats=True) for kind, custom in (("STFT", False), ("ADD", False), ("FlexErf", True))]
    with pytest.raises(UnsupportedError, match="TensorFlow Lite Micro has no FlexErf, STFT; replace what needs it"):
        resolver_calls(operators)


def test_each_operator_is_added_once_by_the_resolvers_own_word() -> None:
    kinds = ["CONV_2D", "ADD_N", "CONV_2D", "PADV2", "RELU6", "UNIDIRECTIONAL_SEQUENCE_LSTM", "L2_POOL_2D", "SELECT_V2"]
    calls = resolver_calls([Operator(kind, custom=False, floats=False) for kind in kinds])
    assert calls == (
        "AddAddN", "AddConv2D", "AddL2Pool2D", "AddPadV2", "AddRelu6", "AddSelectV2", "AddUnidirectionalSequenceLSTM",
    )  # fmt: skip
    assert len(OPERATORS) == 100


def test_a_custom_operator_that_boards_have_goes_by_its_name() -> None:
    assert resolver_calls([Operator("TFLite_Detection_PostProcess", custom=True, floats=True)]) == ("AddDetectionPostprocess",)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"artifacts": (("onnx", "fp32"),)},
            UsageError,
            "no tflite:int8 or tflite:fp32: expected .*, got onnx:fp32; `edgeml ex",
        ),
        ({"artifact": "tflite:fp16"}, UsageError, "the bundle has no tflite:fp16"),
        ({"artifact": "onnx:fp32"}, UsageError, "--artifact: expected a TFLite artifact, got 'onnx:fp32'"),
    ],
    ids=["no tflite", "no such", "another format"],
)
def test_what_is_not_in_the_bundle_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    bundle = make_bundle(tmp_path, artifacts=arguments.pop("artifacts", (("onnx", "fp32"), ("tflite", "fp32"))))
    with pytest.raises(error, match=message):
        make_micro(bundle, tmp_path / "out", **arguments)


def test_without_tflite_micro_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite_micro.tensorflow.lite.micro.python", None)
    with pytest.raises(MissingExtraError, match=r"install edgeml-toolkit\[micro\]"):
        make_micro(make_bundle(tmp_path, artifacts=(("tflite", "fp32"),)), tmp_path / "out")


def test_names_cannot_leave_their_comment() -> None:
    evil = Vectors("x\n#error \\", "x", 0, "float32", np.array([[np.inf, np.nan, -0.5]], np.float32))
    made = write(Program("t", b"\0" * 16, 32, 32, ("AddAdd",), (evil,), (evil,), (0.5,), 1))
    assert "// input 0, x?#error ?\n" in made["golden.h"]
    assert "INFINITY, NAN, -5.0e-01f" in made["golden.h"]


def test_the_command_prints_arena_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path, artifacts=(("tflite", "fp32"),))
    with pytest.raises(SystemExit) as left:
        main(["micro", str(bundle), "--json"])
    assert left.value.code == 0
    made = msgspec.json.decode(capsys.readouterr().out, type=Micro)
    assert {path.name for path in (tmp_path / "toy-1.0.0-micro").iterdir()} == set(made.files)
    assert f"kArenaBytes = {made.reserved_bytes};" in (tmp_path / "toy-1.0.0-micro" / "main.cc").read_text()


@pytest.fixture(scope="module")
def int8() -> bytes:
    """The toy with int8 inside and float32 edges, as the exporter writes it."""
    from edgeml.exporter.quantize.tflite import to_int8_tflite

    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    parsed = schema.ModelT.InitFromPackedBuf(tflite_model(), 0)
    parsed.signatureDefs = []  # the quantizer wants the list, though it be empty
    builder = flatbuffers.Builder(1024)
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    return to_int8_tflite(bytes(builder.Output()), {"serving_default_x:0": samples()}, whole=True).model


@pytest.mark.slow
def test_float_edges_come_off_and_the_answers_stay(int8: bytes) -> None:
    stripped = strip_edges(int8)
    assert (stripped.inputs, stripped.outputs) == ((0,), (0,))
    before, after = read_graph(int8), read_graph(stripped.model)
    assert [operator.kind for operator in before.operators] == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    assert [(operator.kind, operator.floats) for operator in after.operators] == [("FULLY_CONNECTED", False)]
    into, out = after.inputs[0].quantization, after.outputs[0].quantization
    assert into is not None
    assert out is not None
    whole, inner = TflmBackend(int8, 1 << 16), TflmBackend(stripped.model, 1 << 16)
    for x in samples()[:, None, :]:
        stored = np.clip(np.rint(x / np.float32(into.scale)) + into.zero_point, -128, 127).astype(np.int8)
        (real,), (raw,) = whole.run([x]), inner.run([stored])
        assert np.allclose(real, np.float32(out.scale) * (raw.astype(np.float32) - out.zero_point), atol=1e-6)


@pytest.mark.parametrize("wide", ["first", "last"])
def test_layers_of_16_bits_answer_on_a_microcontroller_as_elsewhere(wide: str) -> None:
    model, backend = conv_tflite(), open_tflite(conv_tflite(), EngineOptions())
    x = np.random.default_rng(7).normal(size=(40, SIDE, SIDE, 1)).astype(np.float32)
    network = TfliteNetwork(model, whole=True)
    operators = [name for _, name in network.operators()]
    chosen = frozenset({operators[0 if wide == "first" else -1]})

    mixed = StaticTuner(network, model, {backend.inputs[0].name: x}, widens=True).quantize(chosen).model

    stripped = strip_edges(mixed)
    assert (stripped.inputs, stripped.outputs) == (((), (0,)) if wide == "first" else ((0,), ()))
    micro, linux = TflmBackend(mixed, 1 << 20), open_tflite(mixed, EngineOptions(kernels="exact"))
    for row in x[:8, None]:
        assert np.abs(micro.run([row])[0] - linux.run([row])[0]).max() < 0.03 * np.abs(backend.run([row])[0]).max()


@pytest.mark.slow
def test_dynamic_range_files_are_refused_in_words(tmp_path: Path) -> None:
    from edgeml.exporter.quantize.tflite_recipe import write_static

    hybrid = write_static(
        tflite_model(), {"other": (np.zeros(1), np.ones(1))}, frozenset(), frozenset({"StatefulPartitionedCall:0"})
    )
    (tmp_path / "hybrid.tflite").write_bytes(hybrid)
    with pytest.raises(UnsupportedError, match=r"FLOAT32 with filter type: INT8 not supported.*`edgeml export --for"):
        check(model=str(tmp_path / "hybrid.tflite"))


def test_a_model_that_has_no_edges_to_take_off_stays_as_it_is() -> None:
    model = tflite_model()
    assert strip_edges(model).model is model
