"""A zoo model as every quantizer of `int8_peers` is given it: fp32 in three formats, the same calibration samples.

A folder of its own on disk, because each quantizer runs in a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.zoo.recipe import Recipe
from benchmarks.zoo.samples import Samples
from benchmarks.zoo.training import make, source_answers
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.runtime.backends import Array, Backend, EngineOptions, opener
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Artifact, Format, Signature

FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite", "coreml")


class Facts(msgspec.Struct):
    """What a quantizer needs: `source` is the model file of kind `kind`, `artifacts` say how fp32's tensors are bound."""

    name: str
    source: str
    kind: str
    task: str
    signature: Signature
    artifacts: dict[str, Artifact]

    def artifact(self, format_: Format) -> Artifact:
        return self.artifacts[format_]


@dataclass(frozen=True, slots=True)
class Subject:
    recipe: Recipe
    facts: Facts
    samples: Samples  # that judge
    source: Array  # its first output for them


def prepare(recipe: Recipe, folder: Path) -> Subject:
    """Write fp32.onnx, fp32.tflite, fp32.coreml, calibrate.npz (by input name) and facts.json into `folder`.

    Raises:
        EdgemlError: no format could be made.
    """
    make(recipe)
    splits = recipe.splits()
    splits.calibrate.write(folder / "samples.npz")
    with tempfile.TemporaryDirectory(prefix="edgeml-subject-") as out:
        plan = make_plan(
            recipe.source, to=",".join(FORMATS), precision="fp32", out=out, calib=folder / "samples.npz", name=recipe.name,
            trust=recipe.trusted, metric=recipe.metric,
        )  # fmt: skip
        exported = export(plan)
        if exported.bundle is None:
            raise EdgemlError(f"{recipe.name}: no fp32 form", got=exported.report.summary)
        with open_bundle(exported.bundle) as bundle:
            manifest = bundle.manifest
            for artifact in manifest.artifacts:
                (folder / f"fp32.{artifact.format}").write_bytes(bundle.blob(artifact.sha256))
    artifacts: dict[str, Artifact] = {artifact.format: artifact for artifact in manifest.artifacts}
    named = calibration(splits.calibrate, manifest.signature)
    np.savez(folder / "calibrate.npz", **named)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    if "onnx" in artifacts:
        bound = {binding.name: binding for binding in artifacts["onnx"].inputs}
        columns = [named[name] if one.permute is None else named[name].transpose(one.permute) for name, one in bound.items()]
        by_tensor = {one.tensor: values for one, values in zip(bound.values(), columns, strict=True)}
        np.savez(folder / "calibrate-onnx.npz", **by_tensor)  # type: ignore[arg-type]  # likewise
    facts = Facts(recipe.name, recipe.source, recipe.kind, manifest.task, manifest.signature, artifacts)
    (folder / "facts.json").write_bytes(msgspec.json.encode(facts))
    return Subject(recipe, facts, splits.evaluate, source_answers(recipe)[0])


def calibration(samples: Samples, signature: Signature) -> dict[str, Array]:
    """Calibration arrays (n, ...) by the signature's names."""
    if len(samples.inputs) == 1:
        return {signature.inputs[0].name: next(iter(samples.inputs.values()))}
    return {spec.name: samples.inputs[spec.name] for spec in signature.inputs}


def read_facts(folder: Path) -> Facts:
    return msgspec.json.decode((folder / "facts.json").read_bytes(), type=Facts)


def read_calibration(folder: Path, facts: Facts, format_: Format) -> dict[str, Array]:
    """Calibration arrays (n, ...) by the artifact's own tensor names and order of axes."""
    with np.load(folder / "calibrate.npz", allow_pickle=False) as file:
        return {
            binding.tensor: np.ascontiguousarray(
                file[binding.name] if binding.permute is None else file[binding.name].transpose(binding.permute)
            )
            for binding in facts.artifact(format_).inputs
        }


def answers(model: bytes, format_: Format, subject: Subject, *, most: int | None = None) -> Array:
    """The first output (n, ...) of a quantized form whose tensors stand where fp32's stand; integers by their own scale."""
    artifact = subject.facts.artifact(format_)
    backend = open_model(model, format_)
    given = calibration(subject.samples, subject.facts.signature)
    count = len(subject.samples) if most is None else min(most, len(subject.samples))
    rows = [_one(backend, artifact, {name: values[at : at + 1] for name, values in given.items()}) for at in range(count)]
    return np.stack(rows).reshape(count, *subject.source.shape[1:])


def open_model(model: bytes, format_: Format) -> Backend:
    if format_ == "coreml":
        from edgeml.exporter.mil.backend import open_mil

        return open_mil(model, EngineOptions())
    return opener(format_)(model, EngineOptions())


def _one(backend: Backend, artifact: Artifact, sample: Mapping[str, Array]) -> Array:
    bound = {binding.tensor: binding for binding in artifact.inputs}
    feeds = []
    for index, raw in enumerate(backend.inputs):
        binding = bound.get(raw.name) or artifact.inputs[index]  # a rival's converter has names of its own
        values = sample[binding.name]
        values = values if binding.permute is None else values.transpose(binding.permute)
        if raw.quantization is not None:
            limits = np.iinfo(raw.dtype)
            codes = np.round(values / raw.quantization.scale) + raw.quantization.zero_point
            values = np.clip(codes, limits.min, limits.max)
        feeds.append(np.ascontiguousarray(values, raw.dtype))
    at = next((i for i, raw in enumerate(backend.outputs) if raw.name == artifact.outputs[0].tensor), artifact.outputs[0].index)
    got, raw = backend.run(feeds)[at], backend.outputs[at]
    if raw.quantization is not None:
        got = (got.astype(np.float32) - raw.quantization.zero_point) * np.float32(raw.quantization.scale)
    permute = artifact.outputs[0].permute
    return np.asarray(got if permute is None else got.transpose(np.argsort(permute)))
