from __future__ import annotations

import math
import subprocess
import sys
import uuid
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import Board, Engine, choose, rank
from edgeml.runtime.golden import self_test
from edgeml.runtime.model import AnswerReader, new_request_id
from edgeml.runtime.session import open_session
from edgeml.wire.contract import label
from edgeml.wire.errors import EngineError, SelfTestError, UnsupportedError
from edgeml.wire.manifest import Deferral, Manifest, Parity, PostProcessing, Precision, Requirement
from tests.unit.bundles import FULL, logits, make_bundle, samples

BOTH = Board("aarch64", 2**30, {"onnx": Engine("onnxruntime", "1.30.0"), "tflite": Engine("litert", "2.3.0")})
ONLY_TFLITE = Board("aarch64", 2**30, {"tflite": Engine("litert", "2.3.0")})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    with open_bundle(make_bundle(tmp_path_factory.mktemp("bundle"), artifacts=FULL)) as bundle:
        return bundle.manifest


def with_first(manifest: Manifest, **changes: object) -> Manifest:
    first = msgspec.structs.replace(manifest.artifacts[0], **changes)
    return msgspec.structs.replace(manifest, artifacts=(first, *manifest.artifacts[1:]))


def test_a_loaded_model_answers_with_label_and_score(tmp_path: Path) -> None:
    x = samples()[0]
    with load(make_bundle(tmp_path)) as model:
        result = model.run({"x": x})
    raw = logits(x)
    best = int(raw.argmax())
    assert (result.class_index, result.label) == (best, ("low", "middle", "high")[best])
    assert result.score == pytest.approx(math.exp(raw[best]) / sum(math.exp(value) for value in raw), abs=1e-6)
    assert (result.source, result.model, result.version, result.fallback) == ("device", "toy", "1.0.0", None)
    assert 0 < result.latency_s < 1
    assert model.warm_latency_s is not None
    assert 0 < model.warm_latency_s < 1


def test_a_regression_has_no_label(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, task="regress")) as model:
        result = model.run({"x": samples()[0]})
    assert (result.label, result.class_index, result.score) == (None, None, None)


def test_several_samples_in_one_call_have_no_single_label(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path)) as model:
        result = model.run({"x": samples(4)})
    assert result.label is None
    assert result.outputs["logits"].shape == (4, 3)


@pytest.mark.parametrize(
    ("post", "values", "index", "score"),
    [
        (PostProcessing("logits", "softmax", temperature=2.0), [0.0, 2.0, 0.0], 1, math.e / (math.e + 2)),
        (PostProcessing("logits", "none"), [0.1, 0.7, 0.2], 1, 0.7),
        (PostProcessing("logits", "sigmoid"), [0.0, -1.0, -3.0], 0, 0.5),
        (PostProcessing("logits", "sigmoid"), [2.0], 1, 1 / (1 + math.exp(-2))),
        (PostProcessing("logits", "sigmoid"), [-2.0], 0, 1 / (1 + math.exp(-2))),
        (PostProcessing("logits", "softmax"), [1000.0, 0.0, 0.0], 0, 1.0),
        (PostProcessing("logits", "none", temperature=0.5), [0.6, 0.3, 0.1], 0, 0.36 / (0.36 + 0.09 + 0.01)),
        (PostProcessing("logits", "none"), [0.8], 1, 0.8),
        (PostProcessing("logits", "none", temperature=0.5), [0.2], 0, 0.64 / (0.64 + 0.04)),
    ],
    ids=["temperature", "none", "sigmoid", "binary-yes", "binary-no", "large", "sharpened", "share-yes", "sharpened-share-no"],
)
def test_scores_follow_their_formula(
    manifest: Manifest, post: PostProcessing, values: list[float], index: int, score: float
) -> None:
    reader = AnswerReader(msgspec.structs.replace(manifest, post=post, labels=()))
    got_index, label_, got_score = reader.read({"logits": np.array([values], np.float32)})
    assert (got_index, label_) == (index, None)
    assert got_score == pytest.approx(score, abs=1e-6)


def test_an_artifacts_own_temperature_goes_before_the_manifests(manifest: Manifest) -> None:
    logits = {"logits": np.array([[0.0, 2.0, 0.0]], np.float32)}
    assert AnswerReader(manifest, Deferral(temperature=2.0)).read(logits)[2] == pytest.approx(math.e / (math.e + 2), abs=1e-6)
    assert AnswerReader(manifest).read(logits)[2] == pytest.approx(math.e**2 / (math.e**2 + 2), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "infinity"])
def test_an_answer_that_is_not_finite_is_an_error(manifest: Manifest, bad: float) -> None:
    with pytest.raises(EngineError, match="output 'logits' is not finite"):
        AnswerReader(manifest).read({"logits": np.array([[0.0, bad, 1.0]], np.float32)})


def test_wrong_golden_outputs_keep_a_model_from_loading(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, golden_error=0.01)
    with pytest.raises(SelfTestError) as caught:
        load(path)
    assert "artifact onnx:fp32: output 'logits' of golden sample 0 is off: expected at most 1e-05" in str(caught.value)
    with load(path, self_test=False) as model:
        assert model.golden is None


def test_a_non_finite_output_fails_the_self_test_first(tmp_path: Path) -> None:
    with pytest.raises(SelfTestError, match="sample 0 is not finite: expected finite values, got inf"):
        load(make_bundle(tmp_path, model_bias=math.inf))


def test_too_few_samples_of_the_expected_class_fail_the_self_test(tmp_path: Path) -> None:
    """A tolerance wide enough for any value: only the agreement is left to object."""
    with open_bundle(make_bundle(tmp_path)) as bundle, open_bundle(make_bundle(tmp_path, version="1.1.0", bias=50)) as other:
        artifact = bundle.manifest.artifacts[0]
        assert artifact.golden is not None
        wide = tuple(msgspec.structs.replace(output, tolerance=1e3) for output in artifact.golden.outputs)
        loose = msgspec.structs.replace(artifact, golden=msgspec.structs.replace(artifact.golden, outputs=wide))
        with (
            open_session(other, other.manifest.artifacts[0]) as session,
            pytest.raises(SelfTestError, match=r"at least 0\.9 of 32"),
        ):
            self_test(bundle, loose, session)


@pytest.mark.parametrize(("what", "bound", "passes"), [("rms", 0.3, True), ("rms", 0.28, False), ("bias", 0.16, False)])
def test_a_small_shift_over_all_samples_fails_the_self_test(tmp_path: Path, what: str, bound: float, *, passes: bool) -> None:
    """One logit of three is off by 0.5, within the tolerance of 1: rms 0.5 / sqrt(3) = 0.289, bias 0.5 / 3 = 0.167."""
    with open_bundle(make_bundle(tmp_path)) as bundle, open_bundle(make_bundle(tmp_path, version="1.1.0", bias=0.5)) as other:
        artifact = bundle.manifest.artifacts[0]
        assert artifact.golden is not None
        (output,) = artifact.golden.outputs
        held = msgspec.structs.replace(output, tolerance=1.0, **{what: bound})
        held_to = msgspec.structs.replace(
            artifact, golden=msgspec.structs.replace(artifact.golden, outputs=(held,), least_agreement=0.0)
        )
        with open_session(other, other.manifest.artifacts[0]) as session:
            if passes:
                self_test(bundle, held_to, session)
                return
            with pytest.raises(SelfTestError, match=rf"shifted over all golden samples \({what}\)"):
                self_test(bundle, held_to, session)


@pytest.mark.parametrize(("unit", "passes"), [(1.0, True), (0.4, False)])
def test_a_channel_is_held_to_its_own_unit(tmp_path: Path, unit: float, *, passes: bool) -> None:
    """One logit of three is off by 0.5: within a tolerance of 1, beyond it where 0.4 of that logit count as 1."""
    with open_bundle(make_bundle(tmp_path)) as bundle, open_bundle(make_bundle(tmp_path, version="1.1.0", bias=0.5)) as other:
        artifact = bundle.manifest.artifacts[0]
        assert artifact.golden is not None
        held = msgspec.structs.replace(artifact.golden.outputs[0], tolerance=1.0, axis=1, units=(unit, 1.0, 1.0))
        held_to = msgspec.structs.replace(
            artifact, golden=msgspec.structs.replace(artifact.golden, outputs=(held,), least_agreement=0.0)
        )
        with open_session(other, other.manifest.artifacts[0]) as session:
            if passes:
                assert self_test(bundle, held_to, session).outputs[0].max_abs == pytest.approx(0.5)
                return
            with pytest.raises(SelfTestError, match=r"at most 1 from the exported value, got 1\.25"):
                self_test(bundle, held_to, session)


def test_int8_goes_first_then_the_better_engine(manifest: Manifest) -> None:
    assert [label(choice.artifact) for choice in rank(manifest, BOTH)] == ["onnx:int8", "tflite:fp32", "onnx:fp32"]


def test_what_was_measured_here_decides(manifest: Manifest) -> None:
    measured = {"onnx:int8": 500e-6, "onnx:fp32": 300e-6, "tflite:fp32": 400e-6}
    best = rank(manifest, BOTH, measured_s=measured)[0]
    assert label(best.artifact) == "onnx:fp32"
    assert "measured 300 us here" in best.reason


def test_an_artifact_without_its_engine_is_not_chosen(manifest: Manifest) -> None:
    assert label(choose(manifest, ONLY_TFLITE).artifact) == "tflite:fp32"
    with pytest.raises(UnsupportedError, match="onnx:int8: no engine for onnx is installed"):
        choose(manifest, ONLY_TFLITE, format="onnx")


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        (Requirement("onnxruntime", least_version="1.31"), "needs onnxruntime 1.31, here is 1.30.0"),
        (Requirement("onnxruntime", arch=("x86_64",)), "is for x86_64, this is aarch64"),
        (Requirement("onnxruntime", ram_bytes=2**31), "needs 2147483648 bytes of memory, here are 1073741824"),
    ],
    ids=["version", "arch", "ram"],
)
def test_a_board_that_lacks_something_is_told_what(manifest: Manifest, requires: Requirement, said: str) -> None:
    ranked = rank(with_first(manifest, requires=requires), BOTH)
    assert not ranked[-1].fits
    assert ranked[-1].reason == said


def test_a_newer_engine_than_asked_for_is_fine(manifest: Manifest) -> None:
    requires = Requirement("onnxruntime", least_version="1.9.1")
    assert all(choice.fits for choice in rank(with_first(manifest, requires=requires), BOTH))


def test_an_artifact_that_failed_at_export_is_only_run_when_asked_for_by_name(manifest: Manifest) -> None:
    failed = msgspec.structs.replace(
        manifest, artifacts=(msgspec.structs.replace(manifest.artifacts[0], parity=Parity("fail", "verified", 32, 9.0, 9.0)),)
    )
    with pytest.raises(UnsupportedError, match="export verdict is fail"):
        choose(failed, BOTH)
    assert choose(failed, BOTH, format="onnx", precision="fp32").fits


def test_every_precision_has_its_place_in_the_order_of_preference(manifest: Manifest) -> None:
    """Integer kernels first, then small weights, then halves; 16-bit activations, slow on every CPU, come last."""
    whole = manifest.artifacts[0]
    every = tuple(msgspec.structs.replace(whole, precision=precision) for precision in get_args(Precision))

    ranked = rank(msgspec.structs.replace(manifest, artifacts=every), BOTH)

    order = [choice.artifact.precision for choice in ranked]
    assert order[:3] == ["int8", "int8-dynamic", "int8-weights"]
    assert order[-2:] == ["fp32", "int16"]
    assert order.index("palette8") < order.index("palette6") < order.index("palette4") < order.index("fp16")


def test_a_format_the_bundle_lacks_is_named(manifest: Manifest) -> None:
    with pytest.raises(UnsupportedError, match="has no artifact coreml:any precision"):
        choose(manifest, BOTH, format="coreml")


def test_request_ids_are_uuids_of_version_7_in_order_of_time() -> None:
    first, second = uuid.UUID(new_request_id()), uuid.UUID(new_request_id())
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert second.int >> 80 >= first.int >> 80


def test_importing_the_runtime_brings_no_engine_and_no_server() -> None:
    code = "import sys, edgeml.runtime; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {
        "torch",
        "tensorflow",
        "onnxruntime",
        "ai_edge_litert",
        "coremltools",
        "onnx",
        "typer",
        "rich",
        "fastapi",
        "urllib3",
        "tuf",
    }
    assert heavy.isdisjoint(loaded)
