"""`edgeml inspect`, `edgeml verify`, `edgeml run`: look at a bundle, prove it on this machine, feed it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import typer

from edgeml.runtime.arguments import BundlePath, Json, existing
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.choose import Board, rank, this_board
from edgeml.runtime.golden import self_test
from edgeml.runtime.inspection import ModelFacts, TensorFacts, inspect_model, read_model_file
from edgeml.runtime.model import Model, Result, load_open
from edgeml.runtime.npz import read_samples, write_outputs
from edgeml.runtime.session import open_session
from edgeml.runtime.tensors import shape_text
from edgeml.wire.contract import label
from edgeml.wire.errors import EdgemlError, SelfTestError, UsageError
from edgeml.wire.manifest import Artifact, Deferral, Format, Manifest, Precision, Promise, TensorSpec
from edgeml.wire.structs import learn

inspect_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
verify_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
run_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SHOWN_SAMPLES: Final = 20


class ArtifactLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `verify` found about one artifact: pass, fail, or why it is not run here."""

    artifact: str
    status: str
    detail: str
    samples: int = 0


class Verification(msgspec.Struct, frozen=True):
    bundle: str
    name: str
    version: str
    digest: str
    blobs: int
    status: str
    artifacts: tuple[ArtifactLine, ...]


@inspect_app.command()
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A bundle (.edgeml or folder), or a .onnx, .tflite or .mlpackage.", callback=existing
        ),
    ],
    json: Json = False,
) -> None:
    """Show what is in a bundle or a model file."""
    if is_bundle(file):
        with open_bundle(file) as bundle:
            _print_json(msgspec.to_builtins(bundle.manifest) | {"digest": bundle.digest}) if json else _show_bundle(bundle)
        return
    facts = inspect_model(read_model_file(file))
    _print_json({"precision": facts.precision} | _facts(facts)) if json else _show_facts(file, facts)


@verify_app.command()
def verify(bundle: BundlePath, json: Json = False) -> None:
    """Check every byte of a bundle, then its golden vectors on every engine of this machine.

    Exit codes: 0 all that can run here passes, 2 usage, 3 a byte or an answer is wrong, 6 the file cannot be read.
    """
    with open_bundle(bundle) as opened:
        found = _verify(bundle, opened, this_board(), quiet=json)
    if json:
        _print_json(msgspec.to_builtins(found))
    failed = [line for line in found.artifacts if line.status == "fail"]
    if failed:
        raise SelfTestError(f"{len(failed)} of {len(found.artifacts)} artifacts fail here: {failed[0].detail}")
    if not json:
        ran = sum(line.status == "pass" for line in found.artifacts)
        print(f"{found.status}: {found.name} {found.version}, {ran} of {len(found.artifacts)} artifacts proved on this machine")


@run_app.command()
def run(
    bundle: BundlePath,
    inputs: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="An .npz: one array per input name (or `x`); first axis = samples.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write every output here, an .npz with one array per name.")
    ] = None,
    artifact: Annotated[
        str | None,
        typer.Option(metavar="FORMAT:PRECISION", show_default="the best here", help="Which artifact, such as onnx:int8."),
    ] = None,
    json: Json = False,
) -> None:
    """Run a bundle on samples from an .npz file."""
    with open_bundle(bundle) as opened:
        format_, precision = _asked(opened.manifest, artifact)
        feeds, count = read_samples(inputs, opened.manifest.signature)
        model = load_open(opened, format=format_, precision=precision)
    with model:
        results = [model.run({name: array[i] for name, array in feeds.items()}) for i in range(count)]
    if output is not None:
        write_outputs(output, {name: np.stack([r.outputs[name] for r in results]) for name in results[0].outputs})
    _print_json(_run_record(model, results)) if json else _show_results(model, results, output)


def is_bundle(path: Path) -> bool:
    """A folder with a manifest, or a zip that opens with one; anything else is looked at as a model file."""
    if path.is_dir():
        return path.suffix != ".mlpackage"
    if path.suffix == ".edgeml":
        return True
    if not path.is_file():  # nothing to look into; opening a FIFO would wait for a writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(43)[30:] == b"manifest.json"
    except OSError:
        return False


def _verify(path: Path, bundle: Bundle, board: Board, *, quiet: bool) -> Verification:
    manifest = bundle.manifest
    blobs = manifest.blobs()
    lines = []
    if not quiet:
        print(f"bytes        pass     manifest and {len(blobs)} blobs, {sum(blobs.values())} bytes, digest {bundle.digest}")
    for choice in rank(manifest, board):
        if choice.fits:
            line = _prove(bundle, choice.artifact)
        else:
            line = ArtifactLine(label(choice.artifact), "not run", choice.reason)
        lines.append(line)
        if not quiet:
            print(f"{line.artifact:<12} {line.status:<8} {line.detail}")
    status = "fail" if any(line.status == "fail" for line in lines) else "pass"
    if all(line.status == "not run" for line in lines):
        status = "bytes only"
    return Verification(str(path), manifest.name, manifest.version, bundle.digest, len(blobs), status, tuple(lines))


def _prove(bundle: Bundle, artifact: Artifact) -> ArtifactLine:
    """Golden vectors through the engine a device uses. Wrong answers and refused files are findings, not accidents."""
    name = label(artifact)
    try:
        with open_session(bundle, artifact, options=EngineOptions()) as session:
            golden = self_test(bundle, artifact, session)
            engine = f"{session.backend.engine} {session.backend.version}"
    except EdgemlError as error:
        return ArtifactLine(name, "fail", str(error))
    if golden.samples == 0:
        return ArtifactLine(name, "not run", "the bundle carries no golden vectors for it")
    worst = max(golden.outputs, key=lambda output: output.max_abs / output.limit if output.limit else output.max_abs)
    detail = (
        f"{golden.samples} golden samples on {engine}: at most {worst.max_abs:.3g} off in {worst.name!r} "
        f"(limit {worst.limit:.3g}), {100 * golden.agreement:.4g} % same class"
    )
    return ArtifactLine(name, "pass", detail, golden.samples)


def _asked(manifest: Manifest, artifact: str | None) -> tuple[Format | None, Precision | None]:
    if artifact is None:
        return None, None
    for held in manifest.artifacts:
        if label(held) == artifact:
            return held.format, held.precision
    held_labels = ", ".join(map(label, manifest.artifacts))
    raise UsageError("no such artifact in the bundle", expected=held_labels, got=repr(artifact))


def _run_record(model: Model, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        "artifact": label(model.artifact),
        "reason": model.reason,
        "samples": [
            {"label": r.label, "class_index": r.class_index, "score": r.score, "latency_s": r.latency_s} for r in results
        ],
    }


def _show_results(model: Model, results: Sequence[Result], output: Path | None) -> None:
    print(f"{model.name} {model.version}, {label(model.artifact)}: {model.reason}")
    for i, result in enumerate(results[:_SHOWN_SAMPLES]):
        said = result.label if result.label is not None else result.class_index
        answer = f"{said}  {result.score:.4f}" if result.score is not None else _brief(result.outputs)
        print(f"  {i:>4}  {answer}  {1e6 * result.latency_s:.0f} us")
    if len(results) > _SHOWN_SAMPLES:
        print(f"  … and {len(results) - _SHOWN_SAMPLES} more")
    latencies = sorted(result.latency_s for result in results)
    print(f"{len(results)} samples, median {1e6 * latencies[len(latencies) // 2]:.0f} us", end="")
    print(f", outputs in {output}" if output else "")


def _brief(outputs: dict[str, Array]) -> str:
    return "  ".join(f"{name} {np.array2string(array.ravel()[:4], precision=4)}" for name, array in outputs.items())


def _show_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    print(f"{manifest.name} {manifest.version}   {manifest.task}   digest {bundle.digest}")
    print(
        f"from {manifest.source.kind} {manifest.source.sha256[:12]}"
        + (f", licence {manifest.licence}" if manifest.licence else "")
    )
    for side, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for spec in specs:
            print(f"{side:<7} {_spec_text(spec)}")
    if manifest.labels:
        print(f"labels  {', '.join(manifest.labels[:16])}" + (" …" if len(manifest.labels) > 16 else ""))
    rows: list[tuple[str, ...]] = [("artifact", "bytes", "found in tensors", "parity", "task", "here")]
    reasons = {label(choice.artifact): choice for choice in rank(manifest, this_board())}
    rows += [_artifact_row(artifact, reasons[label(artifact)].reason) for artifact in manifest.artifacts]
    _print_table(rows)
    for artifact in manifest.artifacts:
        for note in artifact.notes:
            print(f"note    {label(artifact)}: {note}")
    for artifact in manifest.artifacts:
        if artifact.deferral is not None and artifact.deferral.promise is not None:
            print(f"cloud   {label(artifact)}: {_deferral_text(artifact.deferral, artifact.deferral.promise)}")


def _artifact_row(artifact: Artifact, here: str) -> tuple[str, ...]:
    parity = f"{artifact.parity.status}, {artifact.parity.where}, max {artifact.parity.max_abs:.2g}"
    task = "-"
    if artifact.task is not None:
        judged = artifact.task
        task = f"{judged.status}, {judged.metric} {judged.value:.4g} (source {judged.source_value:.4g})"
    return label(artifact), str(artifact.bytes), artifact.precision_found, parity, task, here


def _deferral_text(deferral: Deferral, promise: Promise) -> str:
    """`asked below 0.669, for 1.1 % (0.3 to 2.9) of answers: 99.1 % (97.2 to 100.0) right with it, 98.7 % without`."""
    below = "never asked" if deferral.defer_below is None else f"asked below {deferral.defer_below:.3g}"
    offload = f"{promise.offload:.1%}{_between(promise.offload_within)} of answers"
    together = f"{promise.accuracy:.1%}{_between(promise.accuracy_within)} right with it"
    return f"{below}, for {offload}: {together}, {promise.alone:.1%} without"


def _between(within: tuple[float, float] | None) -> str:
    return "" if within is None else f" ({100 * within[0]:.1f} to {100 * within[1]:.1f})"


def _show_facts(file: Path, facts: ModelFacts) -> None:
    print(f"{file.name}   {facts.format}   {facts.bytes} bytes   weights: {facts.precision}")
    for side, tensors in (("input", facts.inputs), ("output", facts.outputs)):
        for tensor in tensors:
            print(f"{side:<7} {_tensor_text(tensor)}")
    print(f"ops     {sum(facts.ops.values())}: " + ", ".join(f"{name} {count}" for name, count in facts.ops.items()))
    for note in facts.notes:
        print(f"note    {note}")


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.name}  {spec.dtype} {shape_text(spec.shape)}" + (f" {spec.layout}" if spec.layout else "")


def _tensor_text(tensor: TensorFacts) -> str:
    shape = shape_text(["?" if axis is None else axis for axis in tensor.shape])
    quantized = (
        f"  scale {tensor.quantization.scale:.6g}, zero point {tensor.quantization.zero_point}" if tensor.quantization else ""
    )
    return f"{tensor.name}  {tensor.dtype} {shape}{quantized}"


def _facts(facts: ModelFacts) -> dict[str, Any]:
    record: dict[str, Any] = msgspec.to_builtins(facts)
    return record


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(record: object) -> None:
    sys.stdout.write(msgspec.json.encode(record).decode() + "\n")


learn(__name__)
