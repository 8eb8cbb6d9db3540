"""diff, explain and bisect on small models of which one layer is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.cli import main
from edgeml.exporter.layers.compared import compare_subjects
from edgeml.exporter.layers.difference import difference
from edgeml.exporter.layers.match import match
from edgeml.exporter.layers.measure import SILENT_DB, cosine, own_signal_to_noise_db, signal_to_noise_db
from edgeml.exporter.layers.subject import open_explained, open_subject
from edgeml.exporter.layers.trace import Operator, Trace
from edgeml.exporter.quantize.onnx import to_fp16_onnx, to_int8_onnx
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from tests.unit import bad_layer
from tests.unit.bundles import make_bundle

CHANNELS = 6


def convolutions(*, broken: bool = False, prefix: str = "") -> bytes:
    """Four convolutions with ReLU, a mean, a dense layer. `broken`: one output channel of the third has other weights."""
    rng = np.random.default_rng(4)
    constants: dict[str, Array] = {}
    nodes, value, inputs = [], "x", 3
    for number in range(4):
        constants[f"{prefix}w{number}"] = rng.normal(size=(CHANNELS, inputs, 3, 3)).astype(np.float32) / 4
        constants[f"{prefix}b{number}"] = rng.normal(size=CHANNELS).astype(np.float32) / 4
        given = [value, f"{prefix}w{number}", f"{prefix}b{number}"]
        nodes += [
            helper.make_node("Conv", given, [f"{prefix}c{number}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{prefix}c{number}"], [f"{prefix}r{number}"]),
        ]
        value, inputs = f"{prefix}r{number}", CHANNELS
    if broken:
        constants[f"{prefix}w2"][1] *= -1
    constants |= {f"{prefix}w": rng.normal(size=(CHANNELS, 4)).astype(np.float32), f"{prefix}b": np.zeros(4, np.float32)}
    nodes += [
        helper.make_node("GlobalAveragePool", [value], [f"{prefix}p"]),
        helper.make_node("Flatten", [f"{prefix}p"], [f"{prefix}f"]),
        helper.make_node("Gemm", [f"{prefix}f", f"{prefix}w", f"{prefix}b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(proto.SerializeToString(deterministic=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("layers")
    (place / "good.onnx").write_bytes(convolutions())
    (place / "broken.onnx").write_bytes(convolutions(broken=True))
    (place / "renamed.onnx").write_bytes(convolutions(broken=True, prefix="other_"))
    x = np.random.default_rng(5).normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(place / "x.npz", x=x)
    (place / "int8.onnx").write_bytes(to_int8_onnx(convolutions(), {"x": x}).model)
    (place / "bad.onnx").write_bytes(bad_layer.model())
    samples = bad_layer.samples(64, 1)[0]
    np.savez(place / "bad.npz", x=samples)
    (place / "bad-int8.onnx").write_bytes(to_int8_onnx(bad_layer.model(), {"x": samples}).model)
    return place


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in (*arguments, "--json")])
    shown = capsys.readouterr()
    assert end.value.code in {0, None}, shown.err
    found: dict[str, object] = json.loads(shown.out)
    return found


@pytest.mark.parametrize("other", ["broken.onnx", "renamed.onnx"], ids=["same names", "other names"])
def test_diff_finds_the_one_layer_whose_weights_changed(folder: Path, other: str) -> None:
    found = compare_subjects(open_subject(str(folder / "good.onnx")), open_subject(str(folder / other)), folder / "x.npz").found
    layers = {layer.tensor: layer for layer in found.layers}

    assert found.source == "c2"
    assert [layers[name].snr_db for name in ("c0", "r0", "c1", "r1")] == [SILENT_DB] * 4
    assert layers["c2"].snr_db < 12
    assert layers["c2"].other.endswith("c2")
    assert not found.unmatched


def test_int8_is_matched_though_its_names_are_gone_and_its_channels_rescaled(folder: Path) -> None:
    found = compare_subjects(
        open_subject(str(folder / "good.onnx")), open_subject(str(folder / "int8.onnx")), folder / "x.npz"
    ).found
    layers = {layer.tensor: layer for layer in found.layers}

    assert {"r0", "r1", "r2", "r3", "y"} <= set(layers)
    assert all(layers[name].snr_db > 20 for name in ("r0", "r1", "r2", "r3", "y"))
    assert layers["r1"].precision == "uint8"
    assert found.kernel_max_abs is not None
    assert found.kernel_max_abs < 0.05


def test_layers_behind_a_spoiled_one_are_still_found_by_their_place(folder: Path) -> None:
    bad, int8 = (open_subject(str(folder / name)) for name in ("bad.onnx", "bad-int8.onnx"))

    found = compare_subjects(bad, int8, folder / "bad.npz").found

    assert [(layer.tensor, layer.matched_by) for layer in found.layers] == [
        ("h0", "place"), ("h1", "place"), ("h2", "place"), ("y", "name"),
    ]  # fmt: skip
    assert found.source == bad_layer.SPOILED


def test_a_wrong_channel_is_no_rescaled_one() -> None:
    """A factor on a channel that nothing after it takes out again is an error, however well it explains the difference."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    gains = np.array([1, 1, 3, 1, 1], np.float32)
    operators = (Operator("h", "Mul", ("x",), ("h",), "float32"), Operator("y", "Gemm", ("h",), ("y",), "float32"))

    def trace(hidden: Array, out: Array) -> Trace:
        return Trace("onnx", operators, ("x",), ("y",), {"x": x, "h": hidden, "y": out})

    good, wrong, equalized = trace(x, x @ w), trace(x * gains, (x * gains) @ w), trace(x * gains, x @ w)

    assert [layer.rescaled for layer in difference(good, wrong).layers] == [False, False]
    assert difference(good, wrong).source == "h"
    assert [layer.rescaled for layer in difference(good, equalized).layers] == [True, False]
    assert difference(good, equalized).layers[0].snr_db > 100


def test_axes_in_another_order_are_told_apart() -> None:
    x = np.random.default_rng(7).normal(size=(4, 3, 5, 6)).astype(np.float32)
    operators = (Operator("a", "Conv", ("x",), ("a",), "float32"),)
    first = Trace("onnx", operators, ("x",), ("a",), {"x": x, "a": x * 2})
    turned = x.transpose(0, 2, 3, 1)
    second = Trace("tflite", operators, ("x",), ("a",), {"x": turned, "a": turned * 2})

    pairs = match(first, second)

    assert [(pair.a, pair.b, pair.by, pair.order) for pair in pairs] == [
        ("x", "x", "value", (1, 2, 0)),
        ("a", "a", "value", (1, 2, 0)),
    ]


def test_bisect_returns_the_node_that_was_broken(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(
        capsys, "bisect", folder / "good.onnx", folder / "broken.onnx", "--input", folder / "x.npz", "-o", tmp_path / "out"
    )

    assert found["found"] is True
    assert found["operators"] == [{"name": "c2", "kind": "Conv", "precision": "float32"}]
    assert found["inputs"] == ["r1"]
    piece = onnx.load(tmp_path / "out" / "piece.onnx")
    assert [node.op_type for node in piece.graph.node] == ["Conv"]


def test_float16_is_cut_as_float16(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "half.onnx").write_bytes(to_fp16_onnx((folder / "broken.onnx").read_bytes()).model)

    found = run(capsys, "bisect", folder / "good.onnx", folder / "half.onnx", "--input", folder / "x.npz", "-o", tmp_path)

    assert [operator["precision"] for operator in found["operators"]] == ["float16"]  # type: ignore[attr-defined]
    assert found["least_db"] == 40.0
    assert found["found"] is True


def test_a_person_can_run_the_reproducer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "bisect", folder / "good.onnx", folder / "broken.onnx", "--input", folder / "x.npz", "-o", tmp_path)

    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=True)

    shown = float(done.stdout.split("signal to noise")[1].split()[0])
    assert shown == pytest.approx(float(str(found["snr_db"])), abs=0.1)
    assert "'c2'" in (tmp_path / "README.txt").read_text()


def test_bisect_finds_the_layer_that_int8_spoils(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "bisect", folder / "bad.onnx", folder / "bad-int8.onnx", "--input", folder / "bad.npz", "-o", tmp_path)

    assert found["found"] is True
    assert found["inputs"] == ["x"]


def test_bisect_of_models_that_agree_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(
        capsys, "bisect", folder / "good.onnx", folder / "int8.onnx", "--input", folder / "x.npz", "-o", tmp_path / "out"
    )

    assert found["found"] is False
    assert not (tmp_path / "out").exists()


def test_explain_lists_every_operator_with_its_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "explain", folder / "int8.onnx")

    (model,) = found["models"]  # type: ignore[misc]
    assert model["counts"]["Conv"] == 4  # type: ignore[has-type]
    assert {line["precision"] for line in model["operators"] if line["kind"] == "Conv"} == {"int8"}  # type: ignore[has-type]


def test_words_are_printed_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["diff", str(folder / "good.onnx"), str(folder / "broken.onnx"), "--input", str(folder / "x.npz")])

    shown = capsys.readouterr().out
    assert "8 samples: samples of x.npz" in shown
    assert next(line for line in shown.splitlines() if "adds most noise" in line).split()[:2] == ["c2", "c2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx", "good.onnx"], "no file"),
        (["x.npz", "good.onnx"], "expected a bundle, .onnx, .tflite or .mlpackage"),
        (["good.onnx:int8", "good.onnx"], "is one model, not a bundle"),
        (["good.onnx", "bad.onnx", "--input", "bad.npz"], "samples do not fit input 'x' of 'good.onnx'"),
    ],
    ids=["no file", "no model", "no bundle", "other samples"],
)
def test_what_cannot_be_compared_is_refused(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(["diff", *arguments])
    assert (end.value.code, message in capsys.readouterr().err) == (2, True)


def test_measures_by_hand() -> None:
    truth = np.array([[1.0, -1.0], [1.0, -1.0]])

    assert signal_to_noise_db(truth, truth * 1.1) == pytest.approx(20.0)
    assert cosine(truth, truth * 3) == pytest.approx(1.0)
    assert own_signal_to_noise_db(20.0, [SILENT_DB]) == pytest.approx(20.0)
    assert own_signal_to_noise_db(20.0, [23.0103]) == pytest.approx(23.0103, abs=1e-3)  # half of the noise was handed on
    assert own_signal_to_noise_db(30.0, [20.0]) is None


@pytest.mark.parametrize("wanted", ["onnx:int5", "tflite", "fp16"])
def test_an_artifact_that_the_bundle_lacks_is_told_with_those_it_has(tmp_path: Path, wanted: str) -> None:
    bundle = make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("onnx", "int8")))
    expected = rf"which artifact of 'toy-1\.0\.0\.edgeml': expected one of .*:onnx:fp32, .*:onnx:int8, got {wanted}"
    with pytest.raises(PlanError, match=expected):
        open_explained(f"{bundle}:{wanted}")
