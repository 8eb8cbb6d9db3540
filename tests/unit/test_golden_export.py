"""Golden vectors let every healthy kernel through and stop a broken delegate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeml.exporter.golden import GOLDEN_SAMPLES, ModelFile, golden_inputs, kernel_answers, make_golden, pick
from edgeml.exporter.golden_bounds import envelope
from edgeml.exporter.golden_units import units_of
from edgeml.exporter.parity.answers import answers
from edgeml.exporter.parity.metrics import Floats
from edgeml.exporter.samples import Samples, load_samples, make_samples
from edgeml.runtime.backends import Array, Backend, EngineOptions, RawTensor, opener
from edgeml.runtime.golden import units
from edgeml.runtime.session import Session
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import EngineError, ParityError
from edgeml.wire.manifest import Binding, Golden, Quantization, Signature, TensorSpec

STEP = 1 / 256
INT8 = np.dtype(np.int8)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 16)),),
    (TensorSpec("p", "float32", ("batch", 6)), TensorSpec("q", "float32", ("batch", 6))),
)
OUTPUTS = tuple(Binding(name, name, index, "int8", (1, 6), Quantization(STEP, -128)) for index, name in enumerate(("p", "q")))
INPUTS = (Binding("x", "x", 0, "float32", (1, 16)),)
WEIGHTS = np.random.default_rng(0).normal(0, 0.8, (2, 16, 6))
KERNEL_NOISE = {b"fp32": 0.0, b"int8": 0.08, b"stepping": 0.0}  # of logits, between one kernel set and another


class Simulated:
    """A classifier with two heads whose kernel sets differ by noise on the logits, as int8 kernels do."""

    engine, version = "simulated", "1"
    inputs: tuple[RawTensor, ...] = (RawTensor("x", np.dtype(np.float32), (1, 16)),)
    outputs: tuple[RawTensor, ...] = tuple(RawTensor(name, INT8, (1, 6), Quantization(STEP, -128)) for name in ("p", "q"))

    def __init__(self, model: bytes, options: EngineOptions) -> None:
        self._noise = 0.0 if options.kernels == "default" else KERNEL_NOISE[model]
        self._seed = sum(options.kernels.encode())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        generator = np.random.default_rng([self._seed, int(abs(inputs[0][0, 0]) * 1e6)])
        logits: Floats = np.einsum("i,kio->ko", inputs[0][0], WEIGHTS)
        logits += generator.normal(0, self._noise, logits.shape)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        stored = np.clip(np.round(shares / STEP) - 128, -128, 127).astype(np.int8)
        return [stored[:1], stored[1:]]

    def close(self) -> None:
        pass


class Broken:
    """A delegate that does something wrong to the raw outputs of a healthy backend."""

    def __init__(self, healthy: Backend, fault: Callable[[list[Array]], list[Array]]) -> None:
        self._healthy, self._fault = healthy, fault
        self.engine, self.version, self.inputs, self.outputs = healthy.engine, healthy.version, healthy.inputs, healthy.outputs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return self._fault(self._healthy.run(inputs))

    def close(self) -> None:
        self._healthy.close()


def missed(golden: Golden, blobs: dict[str, bytes], got: dict[str, Array], scores: str) -> set[str]:
    """Which of the bounds a board's answers to the golden samples are outside of."""
    found = set()
    for output in golden.outputs:
        tensor = output.expected
        expected = np.frombuffer(blobs[tensor.sha256], tensor.dtype).reshape(tensor.shape).astype(np.float64)
        difference = got[tensor.name].astype(np.float64) - expected
        assert output.rms is not None
        assert output.bias is not None
        assert output.channel is not None
        assert output.gain is not None
        if not np.isfinite(difference).all():
            return {"not finite"}
        found |= {"value"} if np.abs(difference).max() > output.tolerance else set()
        found |= {"rms"} if np.sqrt(np.mean(difference**2)) > output.rms else set()
        found |= {"bias"} if abs(difference.mean()) > output.bias else set()
        found |= {"channel"} if np.abs(difference.mean(axis=0)).max() > output.channel else set()
        found |= {"gain"} if abs((difference * expected).sum()) / (expected**2).sum() > output.gain else set()
        if tensor.name == scores:
            agreement = float((got[tensor.name].argmax(axis=1) == expected.argmax(axis=1)).mean())
            found |= {"class"} if agreement < golden.least_agreement else set()
    return found


def simulated(model: bytes) -> ModelFile:
    return ModelFile(model, "tflite", INPUTS, OUTPUTS, Simulated)


def drawn(count: int, seed: int = 1) -> Samples:
    generator = np.random.default_rng(seed)
    return make_samples({"x": generator.normal(size=(count, 16)).astype(np.float32)}, generator.integers(0, 6, count))


@pytest.fixture(scope="module")
def bundle() -> tuple[Samples, Golden, dict[str, bytes]]:
    samples = drawn(400)
    indices = pick(samples, samples.labels)
    golden, blobs, _ = make_golden(simulated(b"int8"), samples, indices, SIGNATURE, scores="p", precision="int8")
    return samples.take(indices), golden, blobs


def test_golden_samples_are_spread_over_the_classes_and_depend_on_nothing_but_the_seed() -> None:
    samples = make_samples({"x": np.arange(1000, dtype=np.float32)[:, None]}, np.repeat([0, 1, 2], [900, 98, 2]))
    indices = pick(samples, samples.labels, seed=3)
    assert samples.labels is not None
    assert np.bincount(samples.labels[list(indices)]).tolist() == [15, 15, 2]
    assert indices == pick(samples, samples.labels, seed=3) != pick(samples, samples.labels, seed=4)
    assert list(indices) == sorted(set(indices))


def test_fewer_samples_than_wanted_are_all_golden() -> None:
    assert pick(drawn(7)) == tuple(range(7))
    assert len(pick(drawn(1000))) == GOLDEN_SAMPLES


def test_tensors_are_stored_raw_and_named_by_their_digest() -> None:
    samples = drawn(40)
    vectors = golden_inputs(samples, [3, 5])
    (tensor,) = vectors.tensors
    data = vectors.blobs[tensor.sha256]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.bytes) == ("x", "float32", (2, 16), 2 * 16 * 4)
    assert sha256_hex(data) == tensor.sha256
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(2, 16), samples.inputs["x"][[3, 5]])


@pytest.mark.parametrize("kernels", ["default", "reference", "exact", "another board's"])
def test_a_healthy_kernel_set_passes(bundle: tuple[Samples, Golden, dict[str, bytes]], kernels: str) -> None:
    samples, golden, blobs = bundle
    with simulated(b"int8").session(SIGNATURE, kernels) as session:
        assert missed(golden, blobs, answers(session.run, samples, SIGNATURE), "p") == set()


def test_healthy_kernels_of_forty_unseen_boards_pass(bundle: tuple[Samples, Golden, dict[str, bytes]]) -> None:
    samples, golden, blobs = bundle
    for board in range(40):
        with simulated(b"int8").session(SIGNATURE, f"board {board}") as session:
            assert missed(golden, blobs, answers(session.run, samples, SIGNATURE), "p") == set(), board


def test_what_is_the_same_in_every_sample_is_seen_below_the_noise_of_kernels() -> None:
    """A bound by element is as wide as kernels differ; a scale or channel that is a little off hides in it, not in sums."""
    generator = np.random.default_rng(3)
    right = generator.normal(0, 1, (400, 8)).astype(np.float32)

    def kernels() -> Array:
        return (right + generator.normal(0, 0.05, right.shape)).astype(np.float32)

    at = list(range(0, 400, 12))
    binding = Binding("p", "p", 0, "float32", (1, 8))
    sets = {name: {"p": values} for name, values in (("default", right), ("a", kernels()), ("b", kernels()))}
    golden, blobs = envelope(sets, at, [binding], scores=None)
    faults = {"gain": right * 1.04, "channel": right + np.array([0.06, 0, 0, 0, -0.06, 0, 0, 0], np.float32)}
    for by, got in faults.items():
        found = missed(golden, blobs, {"p": got[at]}, "")
        assert by in found
        assert not found & {"value", "rms"}
    for _ in range(40):
        assert missed(golden, blobs, {"p": kernels()[at]}, "") == set()


class Stepping(Simulated):
    """Rounds an inner tensor to steps; every kernel set of one board sums in one order, another board's is off by 1e-6."""

    outputs: tuple[RawTensor, ...] = (RawTensor("y", np.dtype(np.float32), (1, 6)),)
    inner = np.random.default_rng(5).normal(0, 0.25, (16, 256))
    last = np.random.default_rng(6).normal(0, 0.1, (256, 6))

    def __init__(self, model: bytes, options: EngineOptions) -> None:
        super().__init__(model, options)
        self._board = int(options.kernels.removeprefix("board ")) if options.kernels.startswith("board ") else 0

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        sums = inputs[0][0] @ self.inner
        if self._board:
            sums = sums * (1 + 1e-6 * np.random.default_rng([self._board, int(abs(inputs[0][0, 0]) * 1e6)]).normal(size=256))
        return [(np.round(sums * 64) / 64 @ self.last)[None].astype(np.float32)]


def test_a_step_that_falls_the_other_way_elsewhere_is_no_fault() -> None:
    """Kernels that agree to the last bit here made bounds of 1e-5, and one flip in one of 32 samples refused healthy boards."""
    signature = Signature(SIGNATURE.inputs, (TensorSpec("y", "float32", ("batch", 6)),))
    file = ModelFile(b"stepping", "onnx", INPUTS, (Binding("y", "y", 0, "float32", (1, 6)),), Stepping)
    samples = drawn(400)
    indices = pick(samples)
    made = {p: make_golden(file, samples, indices, signature, scores=None, precision=p) for p in ("int8", "fp32")}
    refused = dict.fromkeys(made, 0)
    for board in range(1, 41):
        with file.session(signature, f"board {board}") as session:
            got = answers(session.run, samples.take(indices), signature)
        for precision, (golden, blobs, _) in made.items():
            refused[precision] += bool(missed(golden, blobs, got, ""))
    assert refused["fp32"] > 10
    assert refused["int8"] == 0
    right = answers(file.session(signature).run, samples.take(indices), signature)["y"]
    golden, blobs, _ = made["int8"]
    assert "gain" in missed(golden, blobs, {"y": right * 1.01}, "")
    assert missed(golden, blobs, {"y": np.where(np.arange(6) == 2, 0, right)}, "") >= {"value", "rms", "channel"}


def test_kernels_that_compute_something_else_widen_no_bound() -> None:
    """LiteRT's reference SUM of int8 is off by half its range: answers that far off had made half a range the bound."""
    samples, truth = drawn(400), simulated(b"fp32")
    with truth.session(SIGNATURE) as session:
        source = answers(session.run, samples, SIGNATURE)

    def lossy(model: bytes, options: EngineOptions) -> Backend:
        healthy = Simulated(model, options)
        return Broken(healthy, lambda out: [out[0] // 16 * 16, out[1]]) if options.kernels == "reference" else healthy

    file = ModelFile(b"int8", "tflite", INPUTS, OUTPUTS, lossy)
    indices = pick(samples)
    noisy = {name: values + np.float32(0.01) for name, values in source.items()}  # as far as quantization moves answers
    wide, _, _ = make_golden(file, samples, indices, SIGNATURE, scores="p", precision="int8")
    narrow, _, wrong = make_golden(file, samples, indices, SIGNATURE, scores="p", precision="int8", source=noisy)
    assert wrong.keys() == {"reference"}
    assert wrong["reference"] > 3
    assert narrow.outputs[0].bias is not None
    assert wide.outputs[0].bias is not None
    assert narrow.outputs[0].bias < wide.outputs[0].bias / 3


def detections(noise: float, *, seed: int) -> dict[str, Array]:
    """What a detection head answers: four boxes' coordinates in 0..640 joined with two scores in 0..1, for 50 cells."""
    truth, chance = np.random.default_rng(3), np.random.default_rng(seed)
    boxes, scores = truth.uniform(0, 640, (100, 4, 50)), truth.uniform(0, 1, (100, 2, 50)) ** 3
    joined = np.concatenate([boxes, scores], axis=1)
    return {"cells": (joined * (1 + chance.normal(0, noise, joined.shape))).astype(np.float32)}


CELLS = Binding("cells", "cells", 0, "float32", (1, 6, 50))


def broken_bounds(got: Array, golden: Golden, blobs: dict[str, bytes]) -> str | None:
    """What a device says of answers (samples, 6, 50)."""
    (output,) = golden.outputs
    expected = np.frombuffer(blobs[output.expected.sha256], "<f4").reshape(output.expected.shape)
    off, wanted = ((values.reshape(len(values), -1) / units(output)) for values in (got - expected, expected))
    limits = {
        "tolerance": (np.abs(off).max(), output.tolerance), "rms": (np.sqrt((off**2).mean()), output.rms),
        "channel": (np.abs(off.mean(axis=0)).max(), output.channel),
        "gain": (abs((off * wanted).sum()) / (wanted**2).sum(), output.gain),
    }  # fmt: skip
    return next((name for name, (value, limit) in limits.items() if limit is not None and value > limit), None)


def test_scores_joined_with_boxes_are_bounded_in_their_own_units() -> None:
    """A bound for both was a share of 640: a score that is always 0 passed."""
    sets = {name: detections(noise, seed=seed) for name, noise, seed in (("default", 0, 1), ("a", 1e-3, 2), ("b", 1e-3, 3))}
    at = list(range(0, 100, 3))
    golden, blobs = envelope(sets, at, [CELLS], scores=None)
    (output,) = golden.outputs
    assert output.axis == 1
    assert output.units == pytest.approx((1, 1, 1, 1, 1 / 640, 1 / 640), rel=0.01)
    right = sets["default"]["cells"][at]
    for board in range(40):
        assert broken_bounds(detections(1e-3, seed=100 + board)["cells"][at], golden, blobs) is None
    silent, swapped = right.copy(), right.copy()
    silent[:, 4] = 0
    swapped[:, [4, 5]] = swapped[:, [5, 4]]
    assert broken_bounds(silent, golden, blobs) is not None
    assert broken_bounds(swapped, golden, blobs) is not None


def test_small_channels_as_noisy_as_large_ones_keep_one_bound() -> None:
    """An element of an embedding that hardly moves is no unit: its noise comes from the sums that all elements share."""
    size = np.array([1, 1, 1, 0.01])
    right = np.random.default_rng(3).normal(0, 1, (100, 4)) * size
    noisy = {name: right + np.random.default_rng(seed).normal(0, 1e-3, right.shape) for name, seed in (("a", 1), ("b", 2))}
    assert units_of(right, [values - right for values in noisy.values()]).axis is None
    even = [right * 1e-3, -right * 1e-3]
    assert units_of(right, even).axis == 1


FAULTS: dict[str, tuple[Callable[[list[Array]], list[Array]], str]] = {
    "channels rotated": (lambda out: [np.roll(out[0], 1, axis=-1), out[1]], "class"),
    "two channels exchanged": (lambda out: [out[0][:, [1, 0, 2, 3, 4, 5]], out[1]], "value"),
    "one channel zero": (lambda out: [np.where(np.arange(6) == 2, np.int8(-128), out[0]), out[1]], "value"),
    "one channel of the second output zero": (
        lambda out: [out[0], np.where(np.arange(6) == 2, np.int8(-128), out[1])],
        "value",
    ),
    "outputs swapped": (lambda out: [out[1], out[0]], "value"),
    "scaled by 0.9": (lambda out: [(((out[0] + 128.0) * 0.9) - 128).astype(np.int8), out[1]], "bias"),
    "zero point off by one": (lambda out: [np.clip(out[0].astype(int) + 1, -128, 127).astype(np.int8), out[1]], "bias"),
    "zero point stuck at 0": (lambda out: [np.clip(out[0].astype(int) + 128, -128, 127).astype(np.int8), out[1]], "value"),
    "all the same": (lambda out: [np.full_like(out[0], -107), out[1]], "class"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_delegate_is_stopped(bundle: tuple[Samples, Golden, dict[str, bytes]], fault: str) -> None:
    samples, golden, blobs = bundle
    breaks, by = FAULTS[fault]
    backend = Broken(Simulated(b"int8", EngineOptions()), breaks)
    with Session(SIGNATURE, INPUTS, OUTPUTS, backend) as session:
        assert by in missed(golden, blobs, answers(session.run, samples, SIGNATURE), "p")


def test_a_float_file_whose_kernels_agree_gets_a_bound_of_rounding(bundle: tuple[Samples, Golden, dict[str, bytes]]) -> None:
    samples = drawn(100)
    golden, _, _ = make_golden(simulated(b"fp32"), samples, pick(samples), SIGNATURE, scores="p")
    assert golden.least_agreement == 31 / 32
    for output in golden.outputs:
        assert output.tolerance == pytest.approx(2 * STEP, rel=0.01)
        assert output.bias is not None
        assert output.bias < STEP / 2
    assert golden.outputs[0].tolerance < bundle[1].outputs[0].tolerance / 5


def test_a_regression_has_no_classes_to_agree_on() -> None:
    samples = drawn(20)
    golden, _, _ = make_golden(simulated(b"int8"), samples, pick(samples), SIGNATURE, scores=None, precision="int8")
    assert golden.least_agreement == 0.0


def test_the_same_samples_give_the_same_bytes() -> None:
    samples = drawn(60)
    first, second = (make_golden(simulated(b"int8"), samples, pick(samples), SIGNATURE, scores="p") for _ in range(2))
    assert first == second


def test_an_output_that_is_not_finite_makes_no_golden_vectors() -> None:
    def nan(model: bytes, options: EngineOptions) -> Backend:
        backend = Broken(Simulated(model, options), lambda out: [np.full((1, 6), np.nan, np.float32), out[1]])
        backend.outputs = (RawTensor("p", np.dtype(np.float32), (1, 6)), backend.outputs[1])
        return backend

    outputs = (Binding("p", "p", 0, "float32", (1, 6)), OUTPUTS[1])
    samples = drawn(5)
    with pytest.raises(ParityError, match="output 'p' with default kernels"):
        make_golden(ModelFile(b"int8", "tflite", INPUTS, outputs, nan), samples, pick(samples), SIGNATURE, scores="p")


def test_a_kernel_set_that_cannot_run_the_file_is_left_out() -> None:
    def picky(model: bytes, options: EngineOptions) -> Backend:
        if options.kernels == "reference":
            raise EngineError("no such operator in the reference kernels")
        return Simulated(model, options)

    assert set(kernel_answers(ModelFile(b"int8", "tflite", INPUTS, OUTPUTS, picky), drawn(3), SIGNATURE)) == {
        "default",
        "exact",
    }


@pytest.mark.published
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [("kws_dscnn_ref_int8", "kws01", (49, 10, 1), 12), ("ic_resnet8_ref_int8", "cifar10_jpeg1000", (32, 32, 3), 10)],
    ids=["kws", "resnet8"],
)
def test_published_int8_models_pass_with_each_kernel_set_and_fail_when_broken(
    models_dir: Path, data_dir: Path, case: tuple[str, str, tuple[int, ...], int]
) -> None:
    model, data, shape, classes = case
    signature = Signature((TensorSpec("x", "float32", ("batch", *shape)),), (TensorSpec("p", "float32", ("batch", classes)),))
    samples = load_samples(data_dir / f"{data}.npz", signature)
    content = (models_dir / f"{model}.tflite").read_bytes()
    backend = opener("tflite")(content, EngineOptions())
    (raw_in,), (raw_out,) = backend.inputs, backend.outputs
    inputs = (Binding("x", raw_in.name, 0, "int8", (1, *shape), raw_in.quantization),)
    outputs = (Binding("p", raw_out.name, 0, "int8", (1, classes), raw_out.quantization),)
    file = ModelFile(content, "tflite", inputs, outputs, opener("tflite"))
    indices = pick(samples, samples.labels)
    golden, blobs, _ = make_golden(file, samples, indices, signature, scores="p")
    chosen = samples.take(indices)
    for kernels, got in kernel_answers(file, chosen, signature).items():
        assert missed(golden, blobs, got, "p") == set(), kernels
    faults: dict[str, Callable[[list[Array]], list[Array]]] = {
        "channels rotated": lambda out: [np.roll(out[0], 1, axis=-1)],
        "one channel zero": lambda out: [np.where(np.arange(classes) == 3, np.int8(-128), out[0])],
        "zero point off by one": lambda out: [np.clip(out[0].astype(int) + 1, -128, 127).astype(np.int8)],
        "all the same": lambda out: [np.full_like(out[0], -100)],
    }
    for name, fault in faults.items():
        with Session(signature, inputs, outputs, Broken(opener("tflite")(content, EngineOptions()), fault)) as session:
            assert missed(golden, blobs, answers(session.run, chosen, signature), "p"), name
